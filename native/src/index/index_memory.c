/* Another memory setting for an index that has rows.
 *
 * The graph and the codes of the default setting are those of FVDB_MEMORY_FAST, which has blocks beside them
 * (hnsw_edges.c): so these are made or freed, and nothing else changes. */
#include "index.h"

/* Room for the blocks of all links that there is room for, since later rows only make more. */
static fvdb_status make_room(const hnsw *g, edge_blocks *blocks, fvdb_diag *diag) {
    const size_t rows = g->links0.used / hnsw_row_bytes0(g->M0, g->link_bits);
    if (rows == 0 || blocks_resize(blocks, (uint32_t)rows)) return FVDB_OK;
    return FAIL_MEMORY(diag);
}

fvdb_status index_set_memory(fvdb_index *index, uint32_t memory, fvdb_diag *diag) {
    hnsw *g = &index->graph;
    fvdb_config config = index->config;
    edge_blocks blocks;
    workers w;
    if (memory == config.memory) return FVDB_OK;
    if (memory == FVDB_MEMORY_COMPACT || config.memory == FVDB_MEMORY_COMPACT)
        return FAIL(diag, FVDB_ERR_ARGUMENT, "rows are linked by other distances under FVDB_MEMORY_COMPACT");
    config.memory = memory;
    blocks_init(&blocks, &config);
    TRY(workers_start(index, FVDB_THREADS_MAX, 0, &w, diag));
    const fvdb_status status = make_room(g, &blocks, diag);
    if (status == FVDB_OK) {
        const edge_blocks before = g->edges;
        g->edges = blocks;
        blocks = before;
        index->config = config;
        index->store.memory = memory;
        hnsw_code_edges(g, &index->store, w.pool, NULL);
        index_drop_scratch(index); /* what is idle has room for the queries of the other setting */
    }
    blocks_free(&blocks);
    workers_stop(index, &w);
    return status;
}
