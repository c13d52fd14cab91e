/* game_loop.c - one frame at a time.

   The lesson: a game has some milliseconds a frame and must never wait.  tw_generation_step() works for
   as many microseconds as it is given and comes back; the text so far is always whole UTF-8 characters.
   A conversation can go into the savegame: restored, it goes on to the very same words.

       cc -O2 -I.. game_loop.c -o game_loop -lm && ./game_loop FOLDER "Hello there"

   The host is what a host brings: its own allocator (counted here) and its own clock for the budget. */
#define TWINKLE_IMPLEMENTATION
#include "twinkle.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUDGET = 2000 };                                         /* microseconds a frame for the model */

static void *game_alloc(void *user, size_t bytes) { *(size_t *)user += bytes; return malloc(bytes); }
static void game_free(void *user, void *pointer, size_t bytes) { *(size_t *)user -= bytes; free(pointer); }

/* A savegame in memory, as a writer. */
typedef struct { unsigned char *bytes; size_t size, room; } savegame;

static bool save_bytes(void *user, const void *bytes, size_t count) {
    savegame *s = (savegame *)user;
    if (count > s->room - s->size) {
        size_t room = 2 * (s->size + count);
        unsigned char *more = (unsigned char *)realloc(s->bytes, room);
        if (!more) return false;
        s->bytes = more;
        s->room = room;
    }
    memcpy(s->bytes + s->size, bytes, count);
    s->size += count;
    return true;
}

/* The frame loop: play it up to `frames` frames (0: to the end), printing what is new in each. */
static tw_status play(tw_generation *talk, int frames, size_t *printed) {
    tw_status status = TW_MORE;
    int frame;
    for (frame = 0; status == TW_MORE && (frames == 0 || frame < frames); frame++) {
        const char *so_far;
        /* input(); physics(); */
        status = tw_generation_step(talk, BUDGET);
        so_far = tw_generation_text(talk);
        if (so_far && strlen(so_far) > *printed) {
            fputs(so_far + *printed, stdout);
            *printed = strlen(so_far);
        }
        /* draw(); */
    }
    return status;
}

int main(int argc, char **argv) {
    const char *folder = argc > 1 ? argv[1] : "out/story", *prompt = argc > 2 ? argv[2] : "Once upon a time";
    tw_generate_desc how = { .max_new_tokens = 60, .do_sample = true, .temperature = 0.8f, .top_k = 20, .seed = 7 };
    size_t live = 0, printed = 0, bytes = 0;
    tw_desc host = { .alloc = { game_alloc, game_free, &live }, .threads = 1, .log = tw_log_stderr };
    tw_context *tw = tw_create(&host);
    tw_model *npc = tw_from_pretrained(tw, folder);
    tw_generation *talk = tw_generation_begin(npc, prompt, &how);
    savegame save = { NULL, 0, 0 };
    int failed;

    fputs(prompt, stdout);
    if (play(talk, 3, &printed) == TW_MORE) {                   /* three frames, then the player saves ... */
        tw_writer into = { save_bytes, &save };
        tw_generation_save(talk, into);
        bytes = save.size;
        tw_generation_end(talk);
        talk = tw_generation_restore(npc, save.bytes, save.size, &how);   /* ... and loads */
    }
    play(talk, 0, &printed);
    printf("\n(savegame: %s)\n", bytes ? "saved, restored and gone on with" : "not needed, it was done at once");
    tw_generation_end(talk);
    failed = tw_failed(tw);
    if (failed) fprintf(stderr, "%s\n", tw_error(tw));
    tw_destroy(tw);
    free(save.bytes);
    if (live) fprintf(stderr, "%lu bytes were not given back\n", (unsigned long)live);
    return failed || live != 0;
}
