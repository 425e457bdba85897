/* Contract of the index of words: postings over the slots of rows, ranked by BM25.  Depends on base/ and words.h alone.
 *
 * An index is a list of immutable segments, oldest first.  A change makes one segment of the rows that come and of those
 * that leave, and then one of it and the newest ones, where these are no more than TEXT_MERGE_FACTOR times as large: so
 * there are about as many as the logarithm of the rows has digits to that base, and each posting is written about as often.  What is
 * merged depends on sizes alone.  docs/decisions/0025-postings.md has the reasons.
 *
 * A segment numbers its rows by documents 0 .. n_docs - 1, in the order of slots.  Its parts, all packed little-endian:
 *   head        counts, lengths of documents, the slots of those that left, the index of the dictionary
 *   dictionary  blocks of TEXT_BLOCK_TERMS terms in byte order, front-coded, with sizes of their postings
 *   postings    of a term: blocks of TEXT_BLOCK_POSTINGS documents and frequencies, with a table of skips before them
 *   positions   of a term that is no stem: of each of its documents in turn, where the term is
 * The bytes in memory are those that are saved, so a save copies, and a load checks.
 *
 * A row that leaves stays in its segment, its document no longer alive; a newer segment has its slot among those that
 * left, and counts its terms down.  So old segments never change, and sums over segments are the numbers of the rows that
 * are there. */
#ifndef FVDB_TEXT_H
#define FVDB_TEXT_H

#include "../base/base.h"
#include "../base/bytes.h"

#define TEXT_BLOCK_TERMS 32u
#define TEXT_BLOCK_POSTINGS 128u
#define TEXT_MERGE_FACTOR 4u
/* A segment numbers slots through where they reach over no more than so many times its rows. */
#define TEXT_DENSE_SPAN 4u
#define TEXT_NONE UINT32_MAX
/* Bytes behind each stream, zero: numbers are unpacked from eight bytes at a time. */
#define TEXT_SLACK 8u
/* Lengths below this have their norms in a table. */
#define TEXT_LENGTHS 256u
/* Lists of up to so many postings are unpacked at once. */
#define TEXT_UNPACKED 512u
/* Pairs of equal lists that a segment remembers: long ones, as of common words, come in query after query. */
#define TEXT_EQUAL 64u
/* Frequencies up to this have their scores in tables, for terms whose lists are longer than that. */
#define TEXT_FREQS 4u

/* ---- text_segment.c: the bytes of a segment ---- */

enum { TEXT_DICTIONARY, TEXT_POSTINGS, TEXT_POSITIONS, TEXT_STREAMS };

typedef struct text_stream {
    uint8_t *bytes; /* size + TEXT_SLACK */
    uint32_t size;
    uint64_t *came; /* while loading: the chunks that came */
    uint32_t chunks, chunks_came;
} text_stream;

#define TEXT_HEAD_BYTES 80u

typedef struct text_segment {
    uint32_t uses; /* lists that have it: the index, a prepared change */
    uint8_t *head;
    uint32_t head_size;
    /* From the head. */
    bool is_dense;        /* document d has slot first_slot + d; else `slots` has it */
    uint8_t length_width; /* 1, 2 or 4 bytes */
    uint32_t n_docs, first_slot;
    uint32_t n_rows;  /* documents with text */
    uint32_t longest; /* of their lengths, plus 1 */
    uint32_t n_left, n_terms, n_blocks;
    uint64_t n_postings;
    int64_t rows, words; /* what it adds to those of the index */
    const uint8_t *lengths, *slots, *left, *blocks, *first_terms;
    uint32_t first_terms_size;
    text_stream streams[TEXT_STREAMS];
    /* Changes with commits. */
    uint64_t *alive; /* documents whose row is there */
    uint32_t alive_rows;
    /* Changes with searches, each entry at once: long lists that were found to be equal, by the places of both. */
    uint64_t equal[TEXT_EQUAL];
} text_segment;

/* Takes `head`, also on failure; the streams are empty.  FVDB_OK, FVDB_ERR_FORMAT or FVDB_ERR_MEMORY. */
fvdb_status segment_open(uint8_t *head, uint64_t size, text_segment **out, fvdb_diag *diag);
void segment_drop(text_segment *s);
/* Checks every byte of a segment whose streams are whole. */
fvdb_status segment_validate(const text_segment *s, fvdb_diag *diag);
uint64_t segment_resident(const text_segment *s);
/* What merging goes by. */
static inline uint64_t segment_size(const text_segment *s) {
    return s->n_postings + s->n_terms + s->n_docs + s->n_left + 1;
}

/* 0 for a document without text, else its length plus 1. */
static inline uint32_t segment_length(const text_segment *s, uint32_t doc) {
    const uint8_t *at = s->lengths + (size_t)doc * s->length_width;
    return s->length_width == 1 ? *at : (uint32_t)load_le(at, s->length_width);
}
static inline uint32_t segment_slot(const text_segment *s, uint32_t doc) {
    return s->is_dense ? s->first_slot + doc : (uint32_t)load_le(s->slots + (size_t)doc * 4, 4);
}
static inline uint32_t segment_left(const text_segment *s, uint32_t i) {
    return (uint32_t)load_le(s->left + (size_t)i * 4, 4);
}
/* Past the highest slot. */
static inline uint32_t segment_slots_end(const text_segment *s) {
    return s->n_docs ? segment_slot(s, s->n_docs - 1) + 1 : 0;
}
/* The document of a slot whose row is alive in the segment, or TEXT_NONE. */
uint32_t segment_find(const text_segment *s, uint32_t slot);

/* Numbers of 7 bits a byte, the lowest first. */
static inline uint64_t read_varint(reader *r) {
    uint64_t value = 0;
    for (uint32_t shift = 0; shift < 64; shift += 7) {
        const uint8_t *p = read_bytes(r, 1);
        if (!p) return 0;
        value |= (uint64_t)(*p & 127) << shift;
        if (*p < 128) return value;
    }
    r->ok = false;
    return 0;
}

/* What the dictionary has of a term. */
typedef struct term_info {
    uint32_t n;   /* postings */
    int64_t left; /* rows that left since and had the term, or less than none */
    uint32_t postings_at, postings_size, positions_at, positions_size;
} term_info;

/* Goes through the terms of a dictionary.  Safe on bytes that nobody checked: `is_bad` then, and no further term. */
typedef struct term_cursor {
    const text_segment *s;
    reader r;
    uint32_t number; /* of the term */
    bool is_bad;
    uint32_t size,
        shared; /* of the term; of that, bytes which the term before has, unless it is the first of a block */
    uint8_t term[FVDB_TEXT_TERM_BYTES_MAX + TEXT_SLACK];
    term_info info;
} term_cursor;
void terms_begin(term_cursor *c, const text_segment *s);
bool terms_next(term_cursor *c);
/* Goes to the first term that is not below the given one; false where there is none. */
bool terms_seek(term_cursor *c, const text_segment *s, const uint8_t *term, uint32_t size);
/* A stem beside its words, which has no positions: a phrase is of words. */
static inline bool term_is_stem(const uint8_t *term, uint32_t size) { return size && *term == FVDB_TEXT_STEM_MARK; }
/* Whether the cursor's term begins with a prefix. */
static inline bool terms_has_prefix(const term_cursor *c, const uint8_t *prefix, uint32_t size) {
    return c->size >= size && (size == 0 || memcmp(c->term, prefix, size) == 0);
}
/* The block that has a term if there is one; TEXT_NONE before the first. */
uint32_t terms_block(const text_segment *s, const uint8_t *term, uint32_t size);
static inline uint32_t block_field(const text_segment *s, uint32_t block, uint32_t field) {
    return (uint32_t)load_le(s->blocks + ((size_t)block * 4 + field) * 4, 4);
}
const uint8_t *block_first_term(const text_segment *s, uint32_t block, uint32_t *size);
int compare_bytes(const uint8_t *a, uint32_t a_size, const uint8_t *b, uint32_t b_size);

/* A table of skips has an entry for each block, where there are two or more:
 *   uint32 last document; uint32 end of its bytes, and of its positions (0 without any), counted from the first block's; uint8 least
 *   length plus 1 of documents with a frequency of 1, 2, 3 and more (255: that or longer, 0: none); uint32 highest frequency */
#define SKIP_BYTES 20u
#define SKIP_POSITIONS 8u
#define SKIP_LENGTHS 12u
#define SKIP_CLASSES 4u

#define POSTING_STEP 16u

/* The postings of one term in one segment.  Safe on bytes that nobody checked. */
typedef struct posting_cursor {
    const text_segment *s;
    const uint8_t *skips, *bytes;
    uint32_t size; /* of the blocks */
    uint32_t n, n_blocks;
    uint32_t block;         /* the one that is unpacked; TEXT_NONE: none */
    uint32_t count;         /* its postings */
    uint32_t freq_width;    /* 0: all have a frequency of 1 */
    const uint8_t *freq_at; /* its frequencies, packed */
    bool has_freqs;         /* `freqs` has them */
    uint32_t positions_at, positions_size;
    /* Behind the last document stand others that are above all, at least POSTING_STEP, so that so many can be compared at once.
     * Behind the last frequency stand ones. */
    uint32_t docs[TEXT_BLOCK_POSTINGS + POSTING_STEP], freqs[TEXT_BLOCK_POSTINGS];
} posting_cursor;
/* False for malformed bytes: there are no postings then. */
bool postings_open(posting_cursor *c, const text_segment *s, const term_info *info);
/* Unpacks the documents of a block; false for malformed bytes: count is 0 then. */
bool postings_load(posting_cursor *c, uint32_t block);
/* How many of POSTING_STEP documents are below `doc`. */
static inline uint32_t docs_below(const uint32_t *docs, uint32_t doc) {
    uint32_t below = 0;
    for (uint32_t i = 0; i < POSTING_STEP; i++) below += (int32_t)docs[i] < (int32_t)doc;
    return below;
}
/* The first of ascending documents from `at` on that is not below `doc`; POSTING_STEP above all stand behind them. */
static inline uint32_t docs_from(const uint32_t *docs, uint32_t at, uint32_t doc) {
    while ((int32_t)docs[at + POSTING_STEP - 1] < (int32_t)doc) at += POSTING_STEP;
    return at + docs_below(docs + at, doc);
}
/* The first posting of the block whose document is not below `doc`.  Without branches, which nobody could foresee. */
static inline uint32_t postings_from(const posting_cursor *c, uint32_t doc) {
    uint32_t at = 0;
    for (uint32_t i = POSTING_STEP - 1; i < TEXT_BLOCK_POSTINGS; i += POSTING_STEP)
        at += (uint32_t)((int32_t)c->docs[i] < (int32_t)doc) * POSTING_STEP;
    return at + docs_below(c->docs + at, doc);
}
/* Unpacks its frequencies, too. */
void postings_freqs(posting_cursor *c);
/* The frequency of one posting of the block. */
uint32_t postings_freq(const posting_cursor *c, uint32_t at);
static inline uint32_t skip_last(const posting_cursor *c, uint32_t block) {
    return c->n_blocks > 1 ? (uint32_t)load_le(c->skips + (size_t)block * SKIP_BYTES, 4) : c->s->n_docs - 1;
}
/* The positions of the block that is unpacked. */
reader postings_positions(const posting_cursor *c);

/* ---- text_build.c: writes a segment ---- */

typedef struct byte_buffer {
    uint8_t *bytes;
    size_t used, room;
} byte_buffer;
bool buffer_room(byte_buffer *b, size_t more); /* false: out of memory, unchanged */
bool buffer_add(byte_buffer *b, const void *bytes, size_t size);
bool buffer_varint(byte_buffer *b, uint64_t value);

typedef struct segment_builder {
    /* Set by the caller. */
    bool is_dense;
    uint32_t n_docs, first_slot, n_rows;
    const uint32_t *slots;   /* where it is not dense */
    const uint32_t *lengths; /* n_docs, plus 1; 0: without text */
    const uint32_t *left;    /* ascending */
    uint32_t n_left;
    int64_t rows, words;
    /* Private. */
    byte_buffer streams[TEXT_STREAMS], blocks, first_terms, term_skips, term_blocks;
    uint32_t n_terms, n_blocks, n, pending, last_doc, positions_start;
    uint64_t n_postings;
    uint32_t docs[TEXT_BLOCK_POSTINGS], freqs[TEXT_BLOCK_POSTINGS];
    uint8_t last_term[FVDB_TEXT_TERM_BYTES_MAX];
    uint32_t last_size;
    bool has_failed; /* memory ran out */
} segment_builder;
/* Adds a posting to the term that is being written: documents ascend; positions are varints of differences, none for a stem. */
void builder_posting(segment_builder *b, uint32_t doc, uint32_t freq, const uint8_t *positions, size_t size);
/* Ends a term; terms ascend.  One without postings and with left = 0 is left out. */
void builder_term(segment_builder *b, const uint8_t *term, uint32_t size, int64_t left);
/* The segment; the builder is empty then, in any case. */
fvdb_status builder_finish(segment_builder *b, text_segment **out, fvdb_diag *diag);
void builder_free(segment_builder *b);

/* ---- text_index.c: the index ---- */

enum { TEXT_WHOLE, TEXT_LOADING, TEXT_BROKEN };

/* Segments, and what is known of them together. */
typedef struct text_state {
    text_segment **segments;
    uint32_t n;
    int64_t rows, words;
    uint32_t longest;          /* length of a document, plus 1 */
    float norms[TEXT_LENGTHS]; /* by length plus 1: k1 * (1 - b + b * length / average) */
} text_state;

struct fvdb_text {
    fvdb_text_config config;
    rwlock *lock;
    uint32_t state;
    uint64_t generation; /* commits */
    text_state now;
    uint32_t chunk_bytes;             /* while loading */
    uint64_t announced[TEXT_STREAMS]; /* while loading: bytes that no head has claimed yet */
};

fvdb_status text_create(const fvdb_text_config *config, fvdb_text **out, fvdb_diag *diag);
void text_free(fvdb_text *t);
void text_stats(const fvdb_text *t, fvdb_text_stats *out);
/* The same for segments alone. */
void state_stats(const text_state *state, uint32_t chunk_bytes, fvdb_text_stats *out);
uint64_t text_estimate(uint64_t rows, uint64_t text_bytes);
uint64_t text_estimate_change(uint32_t terms, uint64_t index_bytes, uint64_t rows, uint64_t words, uint64_t distinct);
/* Sums and norms of a list of segments. */
void state_sum(text_state *state, const fvdb_text_config *config);
/* Norms of given sums. */
void state_norms(text_state *state, const fvdb_text_config *config);
void state_drop(text_state *state);
/* The segment and document of a slot; NULL where its row is not there. */
const text_segment *state_find(const text_state *state, uint32_t slot, uint32_t *doc);
fvdb_status text_validate(const fvdb_text *t, fvdb_diag *diag);
/* Which documents are alive, and the sums: from the segments alone.  Checks that they fit together. */
fvdb_status text_derive(fvdb_text *t, fvdb_diag *diag);
/* The norm of a length. */
double text_norm(const fvdb_text_config *config, const text_state *state, uint32_t length);
/* Natural logarithm of x >= 1, by arithmetic alone, so of the same bits everywhere; off by less than 1e-15 of itself or
 * 2e-16, whichever is more. */
double text_log(double x);

/* ---- text_stage.c: texts -> words -> a segment ---- */

/* Distinct byte strings, numbered in the order of first use. */
typedef struct vocabulary {
    byte_buffer bytes, ends; /* ends: size_t of each */
    uint64_t *table;         /* number + 1 below, the upper half of the hash above; 0: free */
    uint32_t table_size, n;
    uint64_t seed; /* never changes a number */
} vocabulary;

/* Texts as words.  A row is one text, or several that follow each other. */
typedef struct staged_rows {
    uint32_t n_texts, n_rows;
    uint32_t *ends;     /* of each text, in `tokens` */
    uint32_t *starts;   /* n_rows + 1: first text of each */
    uint32_t *slots;    /* of rows, ascending */
    uint32_t *order;    /* of rows: the row that has slots[i] */
    byte_buffer tokens; /* uint32 number of the word */
} staged_rows;

struct fvdb_text_change {
    uint32_t terms_kind; /* FVDB_TEXT_WORDS ... */
    bool is_staged;      /* not from a map */
    vocabulary words;
    staged_rows removed, added;
    /* After text_set_terms: of each word. */
    bool has_terms;
    vocabulary terms;
    uint32_t *first, *second; /* number of the term in `terms`; TEXT_NONE: none.  second: FVDB_TEXT_BOTH only */
    /* After a preparation. */
    bool is_prepared;
    uint64_t generation;
    text_state next;
    uint32_t kept; /* old segments in it */
};

fvdb_status text_stage(const fvdb_text *t, const fvdb_text_rows *removed, const fvdb_text_rows *added,
                       fvdb_control *control, fvdb_text_change **out, fvdb_diag *diag);
void change_free(fvdb_text_change *c);
fvdb_status change_set_terms(fvdb_text_change *c, const uint8_t *bytes, const uint64_t *offsets, uint32_t n,
                             fvdb_diag *diag);
const uint8_t *vocabulary_get(const vocabulary *v, uint32_t number, uint32_t *size);
/* The segment of a staged change; left_words: the lengths of the rows that leave, in all. */
fvdb_status change_segment(const fvdb_text_change *c, int64_t left_words, fvdb_control *control, text_segment **out,
                           fvdb_diag *diag);

/* ---- text_merge.c: prepare, commit ---- */

fvdb_status text_prepare(const fvdb_text *t, fvdb_text_change *c, fvdb_control *control, fvdb_diag *diag);
fvdb_status text_commit(fvdb_text *t, fvdb_text_change *c, fvdb_diag *diag);
fvdb_status text_stage_map(const fvdb_text *t, const uint32_t *map, uint32_t n, fvdb_control *control,
                           fvdb_text_change **out, fvdb_diag *diag);
/* One segment of several, oldest first, without rows that are not alive.  is_all: there is none before them.
 * left: more slots that left.  map: new slots, or NULL. */
fvdb_status segments_merge(text_segment *const *segments, uint32_t n, bool is_all, const uint32_t *left,
                           uint32_t n_left, const uint32_t *map, uint32_t n_map, fvdb_control *control,
                           text_segment **out, fvdb_diag *diag);
void sort_u64(uint64_t *keys, uint64_t *room, size_t n);

/* ---- text_query.c: a query -> lists of postings ---- */

/* A term of a query, its numbers over all segments, and where each segment has it. */
typedef struct query_term {
    const uint8_t *bytes;
    uint32_t size;
    double weight; /* the caller's, then times idf */
    float factor;  /* of its score, in steps of the query's scale */
    int64_t df;
    bool of_phrase; /* of the last phrase when it was added: not shared with other clauses */
    /* It counts so often: 2 for two terms with the same postings, 0 for the second of them; and the lesser of the two has the
     * factor over 2^lesser. */
    uint32_t times, lesser;
    const struct query_term
        *stem; /* of a word that its stem follows in the query, and whose rows the stem has, too; else NULL */
    /* Its score in documents that have it 1 .. tabled times, by length plus 1 below TEXT_LENGTHS; tabled is 0 or TEXT_FREQS. */
    uint32_t *table, tabled;
    term_info *infos; /* n of segments; info.n == 0 and left == 0 where it is not there */
} query_term;

#define TEXT_ALONE 31u /* `lesser` of a term that has no second one: of a score below 2^31 nothing is left */
/* A score of a term by `part`, freq / (freq + norm).  Half of a factor is exact, and so is half of its product, so the second term
 * counts what it would by itself, to the bit. */
static inline uint32_t score_of_part(uint32_t times, uint32_t lesser, float factor, float part) {
    const uint32_t most = (uint32_t)(int32_t)(factor * part);
    return times + most + (most >> lesser);
}

typedef struct query_clause {
    uint32_t flags;
    const fvdb_text_clause *given;
    uint32_t n;
    uint32_t *terms;  /* in query->terms; for a clause that is not a phrase: distinct */
    int32_t *offsets; /* of a phrase */
} query_clause;

typedef struct text_query {
    const fvdb_text *t;
    const fvdb_text_query *query; /* the caller's */
    const text_state *state;
    text_state of_all; /* with totals: the segments of the index, and the sums and norms of all of them */
    query_term *terms;
    uint32_t n_terms;
    query_clause *clauses;
    uint32_t n_clauses;
    uint32_t *scored, n_scored; /* terms of clauses that are neither phrases nor excluded */
    int exponent;               /* a score is an integer times 2^-exponent */
    bool has_phrases, has_mask;
    bool is_damaged; /* an entry of a dictionary is malformed */
    struct arena_block *arena;
} text_query;
fvdb_status query_open(text_query *q, const fvdb_text *t, const fvdb_text_query *query, fvdb_diag *diag);
void query_close(text_query *q);
/* 2^exponent. */
double text_power(int exponent);
void *query_alloc(text_query *q, size_t count, size_t size);
/* Checks what the caller gave. */
fvdb_status query_check(const fvdb_text_query *query, fvdb_diag *diag);

/* Terms and how many rows have each; the caller frees the buffers. */
typedef struct term_counts {
    uint32_t n;
    byte_buffer bytes, ends, rows; /* ends and rows: uint64_t of each */
} term_counts;
fvdb_status text_terms(const fvdb_text *t, const fvdb_text_query *query, term_counts *out, fvdb_diag *diag);

/* ---- text_search.c ---- */

/* What a search is asked for, and where its hits go: as for fvdb_text_search. */
typedef struct text_wanted {
    uint32_t k;
    const uint64_t *allow;
    uint64_t allow_words;
    uint32_t *out_slots;
    double *out_scores;
    uint32_t *out_count;
    uint64_t *out_matches;
} text_wanted;
fvdb_status text_search(const fvdb_text *t, const fvdb_text_query *query, const text_wanted *wanted, fvdb_diag *diag);
fvdb_status text_search_terms(const fvdb_text *t, const uint8_t *bytes, size_t size, float word_weight,
                              const text_wanted *wanted, fvdb_diag *diag);
fvdb_status text_search_words(const fvdb_text *t, const uint8_t *bytes, size_t size, const text_wanted *wanted,
                              fvdb_diag *diag);
fvdb_status text_score_slots(const fvdb_text *t, const fvdb_text_query *query, const uint32_t *slots, uint32_t n,
                             double *out_scores, fvdb_diag *diag);
fvdb_status text_mask(const fvdb_text *t, const fvdb_text_query *query, uint32_t n_slots, uint64_t *out,
                      fvdb_diag *diag);

/* ---- text_parts.c: save and load ---- */

fvdb_status text_parts(const fvdb_text *t, uint32_t chunk_bytes, fvdb_part *out, uint32_t capacity, uint32_t *out_count,
                       fvdb_diag *diag);
fvdb_status text_part_write(const fvdb_text *t, uint32_t chunk_bytes, uint32_t kind, uint32_t number, uint8_t *out,
                            uint64_t capacity, uint64_t *out_size, fvdb_diag *diag);
fvdb_status text_load(const fvdb_text_config *config, uint32_t segments, uint32_t chunk_bytes,
                      const uint64_t *stream_bytes, fvdb_text **out, fvdb_diag *diag);
fvdb_status text_load_part(fvdb_text *t, uint32_t kind, uint32_t number, const uint8_t *bytes, uint64_t size,
                           fvdb_diag *diag);
fvdb_status text_load_end(fvdb_text *t, fvdb_diag *diag);
/* FVDB_OK where all came that a query needs. */
fvdb_status text_check_present(const fvdb_text *t, const fvdb_text_query *query, fvdb_diag *diag);
fvdb_status text_missing(const fvdb_text *t, const fvdb_text_query *query, fvdb_part *out, uint32_t capacity,
                         uint32_t *out_count, fvdb_diag *diag);
#endif
