/* Runs files through the harnesses, where there is no libFuzzer:  replay <harness> <file>... [<harness> <file>...] */
#include "harness.h"

static const struct {
    const char *name;
    void (*run)(const uint8_t *data, size_t size);
} harnesses[] = {
    {"fields", fuzz_fields}, {"lazy", fuzz_lazy}, {"parts", fuzz_parts}, {"text", fuzz_text}, {"words", fuzz_words}};
enum { HARNESSES = sizeof harnesses / sizeof *harnesses };

int main(int argc, char **argv) {
    static uint8_t data[1 << 20];
    uint32_t which = HARNESSES, files = 0;
    for (int i = 1; i < argc; i++) {
        uint32_t named = 0;
        while (named < HARNESSES && strcmp(argv[i], harnesses[named].name)) named++;
        if (named < HARNESSES) {
            which = named;
            continue;
        }
        FILE *file = which < HARNESSES ? fopen(argv[i], "rb") : NULL;
        if (!file) {
            fprintf(stderr, "%s: no harness was named, or no such file\n", argv[i]);
            return 2;
        }
        const size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        fprintf(stderr, "%s\n", argv[i]);
        harnesses[which].run(data, size);
        files++;
    }
    printf("%u inputs replayed\n", files);
    return 0;
}
