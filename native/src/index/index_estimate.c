/* How much memory an index takes, and how much more while it changes: for checking a budget before anything is done.
 *
 * Mirrors what store_reserve, hnsw_reserve, ivf_fill and the calls themselves ask for.  Where that depends on the rows (how
 * many links there are, which rows an add touches), it is the most that can be. */
#include "index.h"

#define SLOT_BYTES sizeof(uint32_t)

static uint32_t to_rows(uint64_t n) { return n < FVDB_ROWS_MAX ? (uint32_t)n : FVDB_ROWS_MAX; }

/* Level-0 links of a row, where slots go up to `rows`. */
static uint64_t link_bytes(const fvdb_config *config, uint64_t rows) {
    if (config->memory != FVDB_MEMORY_COMPACT) return 2 * (uint64_t)config->M * SLOT_BYTES;
    return hnsw_row_bytes0(2 * config->M, hnsw_link_bits(to_rows(rows)));
}

static uint64_t graph_bytes(const fvdb_config *config, uint64_t graph_rows, uint64_t rows) {
    const uint64_t M = config->M, upper = graph_rows / M + 1;
    return graph_rows * link_bytes(config, rows) + blocks_bytes(config, graph_rows) + upper * (2 * SLOT_BYTES + 1) +
           (upper + upper / (M - 1) + 1) * M * SLOT_BYTES;
}

static uint64_t code_bytes(const fvdb_config *config) { return round_up(config->dim, CODE_DIMS) / 2; }

/* Lists for so many rows, `settled` of which have codes on their lists.  The last group of each list is half full, on average. */
static uint64_t lists_bytes(const fvdb_config *config, uint64_t rows, uint64_t historical, uint64_t settled) {
    if (historical == 0) return 0;
    const uint64_t nlist = ivf_nlist(to_rows(historical)), code = code_bytes(config);
    const uint64_t centroids = nlist * (code + sizeof(float) + 2 * sizeof(ivf_list) + sizeof(coded_list));
    const uint64_t first = historical < settled ? historical : settled;
    const uint64_t coded = ivf_keeps_codes(config->memory, config->dim) ? first : 0;
    const uint64_t lanes = coded ? coded * (10 + IVF_SECOND_TENTHS) / 10 + nlist * (EDGE_LANES / 2 + 1) : 0;
    const uint64_t codes = lanes * edge_group_bytes((uint32_t)round_up(config->dim, CODE_DIMS)) / EDGE_LANES;
    const uint64_t seconds = historical * 2 * SLOT_BYTES * IVF_SECOND_TENTHS / 10;
    return centroids + rows / 8 + historical * SLOT_BYTES + seconds + codes;
}

static uint64_t table_bytes(uint64_t ids) {
    uint64_t table = 64;
    while (table * 7 / 8 < ids) table *= 2;
    return table * SLOT_BYTES;
}

uint64_t index_estimate(const fvdb_config *config, uint64_t rows, uint64_t graph_rows, uint64_t historical,
                        uint64_t id_bytes) {
    uint64_t dim16 = round_up(config->dim, PLANE_LANES), code = code_bytes(config);
    uint64_t row = dim16 * 2 * sizeof(uint16_t) + sizeof(int64_t) + 1;
    if (config->memory != FVDB_MEMORY_COMPACT) row += code + sizeof(float) + sizeof(uint16_t);
    else row += config->metric == FVDB_METRIC_COSINE ? sizeof(float) : 0;
    /* Row offsets of the id arena, its table, and one walk of search memory per thread. */
    return rows * row + graph_bytes(config, graph_rows, rows) +
           lists_bytes(config, rows, historical, rows - graph_rows) + rows * SLOT_BYTES + id_bytes + table_bytes(rows) +
           (uint64_t)(config->threads < IDLE_SCRATCH_MAX ? config->threads : IDLE_SCRATCH_MAX) * (rows * 9 / 8);
}

/* ---- what comes on top while a call runs ---- */

/* Marks of rows met, made before those that are too short go, and room for candidates, of each thread. */
static uint64_t walk_bytes(const fvdb_config *config, uint64_t rows, uint64_t candidates) {
    return rows * 9 / 8 + config->threads * (candidates * sizeof(candidate) + config->dim * 32u);
}

/* Training and judging a codebook, one after the other. */
static uint64_t codebook_bytes(const fvdb_config *config, uint64_t rows) {
    return (rows / 4096 + 1) * 2 * config->dim * sizeof(double) +
           codes_judge_scratch(config->dim, to_rows(rows), config->threads);
}

/* Links of graph rows and ids in another order, beside the old ones. */
static uint64_t renumbering_bytes(const fvdb_config *config, const index_work *w) {
    const uint64_t orders = 4 * w->rows * SLOT_BYTES + w->rows / 4;
    return orders + w->id_bytes + w->rows * (SLOT_BYTES + sizeof(int64_t)) +
           graph_bytes(config, w->graph_rows, w->rows) + blocks_scratch(config, w->graph_rows) +
           3 * SLOT_BYTES * (w->graph_rows / config->M + 1) + w->rows / 8;
}

static uint64_t adding_bytes(const fvdb_config *config, const index_work *w) {
    const uint64_t before = w->graph_rows - w->added, M0 = 2 * config->M;
    const bool refines = index_refines(before < INDEX_GRAPH_ROWS_MIN ? 0 : before, w->graph_rows);
    const uint64_t touched = refines || before < w->added * M0 ? before : w->added * M0;
    const uint64_t checks = w->added * (5 * SLOT_BYTES + sizeof(int64_t)) + table_bytes(w->added) + w->id_bytes;
    const uint64_t undo = before / 8 + touched * (3 + M0 + 1) * SLOT_BYTES;
    return checks + table_bytes(w->rows) / 2 + undo + hnsw_link_scratch(config->M, w->added) +
           (refines ? hnsw_refine_scratch(config->M, to_rows(w->graph_rows)) : 0) + codebook_bytes(config, w->rows) +
           walk_bytes(config, w->rows, max_u32(config->ef_construction, HNSW_MERGED_MAX)) +
           blocks_scratch(config, w->graph_rows);
}

static uint64_t vacuum_bytes(const fvdb_config *config, const index_work *w) {
    /* Lists as they will be, beside those that are, and where rows are on them, before and after. */
    const uint64_t lists = lists_bytes(config, w->rows, w->historical, w->historical) + w->historical * 3 * SLOT_BYTES +
                           w->rows * 2 * SLOT_BYTES;
    /* A repair needs less than a new graph, which is passed over twice. */
    return renumbering_bytes(config, w) + lists + hnsw_link_scratch(config->M, w->graph_rows) +
           hnsw_refine_scratch(config->M, to_rows(w->graph_rows)) + codebook_bytes(config, w->rows) +
           walk_bytes(config, w->rows, max_u32(2 * config->ef_construction, HNSW_REPAIR_CANDIDATES));
}

static uint64_t training_bytes(const fvdb_config *config, const index_work *w) {
    /* The slots that are looked at and their lists, and the lists to be, beside those that are. */
    return w->rows * SLOT_BYTES + w->rows / 8 + w->historical * 2 * SLOT_BYTES +
           lists_bytes(config, w->rows, w->historical, w->historical) +
           ivf_train_scratch(config->dim, to_rows(w->rows), ivf_nlist(to_rows(w->rows))) +
           SCAN_QUERIES_MAX * walk_bytes(config, 0, 1024);
}

uint64_t index_scratch(const fvdb_config *config, const index_work *w) {
    switch (w->kind) {
    case FVDB_WORK_ADD: return adding_bytes(config, w);
    case FVDB_WORK_VACUUM: return vacuum_bytes(config, w);
    case FVDB_WORK_TRAIN: return training_bytes(config, w);
    }
    /* A locality order first clusters the rows. */
    const uint64_t order = 3 * w->rows * SLOT_BYTES +
                           ivf_train_scratch(config->dim, to_rows(w->rows), index_clusters(to_rows(w->graph_rows)));
    const uint64_t renumbering = renumbering_bytes(config, w) + w->rows * SLOT_BYTES;
    return order > renumbering ? order : renumbering;
}
