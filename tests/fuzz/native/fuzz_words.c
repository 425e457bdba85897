/* Texts of any bytes: the words and the segments of a text. */
#include "harness.h"

FUZZ(words) {
    uint8_t *text = room(size, 1);
    if (size) memcpy(text, data, size);
    uint32_t n, again;
    uint64_t bytes, same;
    fvdb_status status = fvdb_text_words(text, size, 0, 0, NULL, NULL, NULL, NULL, &n, &bytes, NULL);
    MUST(status == (n || bytes ? FVDB_ERR_BUFFER : FVDB_OK));
    uint8_t *terms = room(bytes, 1);
    uint64_t *ends = room(n, sizeof *ends);
    uint32_t *starts = room(n, sizeof *starts), *stops = room(n, sizeof *stops);
    MUST(fvdb_text_words(text, size, n, bytes, terms, ends, starts, stops, &again, &same, NULL) == FVDB_OK);
    MUST(again == n && same == bytes && (n == 0 || ends[n - 1] == bytes));
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t term = ends[i] - (i ? ends[i - 1] : 0);
        MUST(term >= 1 && term <= FVDB_WORD_BYTES_MAX);
        MUST(starts[i] < stops[i] && stops[i] <= size && (i == 0 || starts[i] >= starts[i - 1]));
    }
    uint32_t *segments = room(size, sizeof *segments);
    MUST(fvdb_text_segments(text, size, (uint32_t)size, segments, &n, NULL) == FVDB_OK);
    for (uint32_t i = 0; i < n; i++) MUST(segments[i] > (i ? segments[i - 1] : 0));
    MUST(n ? segments[n - 1] == size : size == 0);
    free(text);
    free(terms);
    free(ends);
    free(starts);
    free(stops);
    free(segments);
}
