/* fuzz_all.c - every fuzzer in one program, because the library takes long to compile for them.  The name under which it is
   started says which one it is: link it to fuzz_files, fuzz_models, ...  The rest is as fuzz.h says for each of them. */
#define FUZZ_ALL
#include "fuzz_files.c"
#include "fuzz_models.c"
#include "fuzz_pytorch.c"
#include "fuzz_vocabularies.c"

static void (*fuzz_one)(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    const char *slash = strrchr((*argv)[0], '/'), *name = slash ? slash + 1 : (*argv)[0];
    (void)argc;
    fuzz_one = strcmp(name, "fuzz_files") == 0 ? fuzz_files : strcmp(name, "fuzz_models") == 0 ? fuzz_models
             : strcmp(name, "fuzz_pytorch") == 0 ? fuzz_pytorch : strcmp(name, "fuzz_vocabularies") == 0 ? fuzz_vocabularies : NULL;
    demand(fuzz_one != NULL, "no fuzzer has this name");
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) { fuzz_one(data, size); return 0; }
