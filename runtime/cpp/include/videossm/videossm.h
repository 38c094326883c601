/* videossm: runs a plan that videossm-export wrote, as an endless stream of video. C11; videossm.hpp is for C++17.

   A plan is opened once: its files are checked and its weights loaded. Rollouts are streams over it, each with a state
   of its own.

       videossm_error *error = NULL;
       videossm_plan *plan = NULL;
       videossm_rollout *rollout = NULL;
       const char *prompt = "a red circle bounces on gray";
       videossm_rollout_options options = VIDEOSSM_ROLLOUT_OPTIONS;
       options.prompts = &prompt;
       options.prompt_count = 1;
       if (videossm_plan_open("engine.plan", NULL, &plan, &error) == VIDEOSSM_OK &&
           videossm_rollout_create(plan, &options, &rollout, &error) == VIDEOSSM_OK) {
           videossm_chunk chunk;
           while (videossm_rollout_next(rollout, NULL, &chunk, &error) == VIDEOSSM_OK) {
               show(chunk.pixels, chunk.frames, chunk.frame_stride, chunk.row_stride);
           }
       }
       if (error != NULL) {
           fprintf(stderr, "%s\n", videossm_error_text(error));
       }
       videossm_error_free(error);
       videossm_rollout_free(rollout);
       videossm_plan_free(plan);

   Errors. A function that can fail returns a status. Where that is an error (videossm_is_error), the function has
   changed nothing but what its description says, and `*error`, if `error` is not NULL, is an object of the caller's
   with the text: one line, "what: got X, expected Y; do Z". It must be NULL before, and is left alone otherwise.

   Ownership. What a function hands out by a pointer to a pointer belongs to the caller until the matching _free, which
   takes NULL too. A plan may be freed before its rollouts: it goes with the last of them. Text and pixels that are
   reached through an object belong to it and last as long as their description says. Nothing that a caller passes in
   is kept but callbacks and their `user`.

   Threads. A plan may be used by any number of threads at once. A rollout, a snapshot and an error belong to one thread
   at a time; rollouts of one plan may run beside each other. videossm_rollout_cancel and
   videossm_rollout_set_prompt may be called from any thread while another is inside videossm_rollout_next. Callbacks
   are called in the thread that is inside the function, and must not call that rollout's functions but
   videossm_rollout_cancel.

   Versions. Structs with `size_bytes` may grow at their end: set it as the macros do. All text is UTF-8. There is no
   state outside of the handles, but for the libraries of ONNX Runtime, CUDA and TensorRT, which are loaded once for the
   process when a plan asks for them, and stay; and no function prints anything. */
#ifndef VIDEOSSM_VIDEOSSM_H
#define VIDEOSSM_VIDEOSSM_H

#include <stddef.h>
#include <stdint.h>

#define VIDEOSSM_VERSION_MAJOR 0
#define VIDEOSSM_VERSION_MINOR 1
#define VIDEOSSM_VERSION_PATCH 0

#if defined(VIDEOSSM_STATIC)
#define VIDEOSSM_API
#elif defined(_WIN32) && defined(VIDEOSSM_BUILDS)
#define VIDEOSSM_API __declspec(dllexport)
#elif defined(_WIN32)
#define VIDEOSSM_API __declspec(dllimport)
#else
#define VIDEOSSM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum videossm_status {
    VIDEOSSM_OK = 0,
    VIDEOSSM_ENDED = 1,     /* the clip is over; no error */
    VIDEOSSM_CANCELLED = 2, /* as asked for; no error */
    VIDEOSSM_ERROR_PLAN = 16,     /* a plan that is missing, damaged, of another version or inconsistent */
    VIDEOSSM_ERROR_STATE = 17,    /* a state that is damaged, of another plan, or lost */
    VIDEOSSM_ERROR_PROMPT = 18,   /* a prompt that the plan cannot express */
    VIDEOSSM_ERROR_BACKEND = 19,  /* what runs the engines is missing, or cannot run them */
    VIDEOSSM_ERROR_ARGUMENT = 20, /* an argument out of its range */
    VIDEOSSM_ERROR_MEMORY = 21,
    VIDEOSSM_ERROR_INTERNAL = 22
} videossm_status;

typedef struct videossm_error videossm_error;
typedef struct videossm_plan videossm_plan;
typedef struct videossm_rollout videossm_rollout;
typedef struct videossm_snapshot videossm_snapshot;

/* 10000 major + 100 minor + patch, of the library. */
VIDEOSSM_API uint32_t videossm_version(void);
VIDEOSSM_API int videossm_is_error(videossm_status status);
VIDEOSSM_API videossm_status videossm_error_status(const videossm_error *error);
/* As long as the error. */
VIDEOSSM_API const char *videossm_error_text(const videossm_error *error);
VIDEOSSM_API void videossm_error_free(videossm_error *error);

/* Plans */

typedef struct videossm_plan_options {
    size_t size_bytes;
    int32_t threads; /* of a CPU; 0 for one a core. Frames are bit-identical for the same number. */
    /* Told what happens while the plan is opened, a line each. May be NULL. */
    void (*log)(void *user, const char *line);
    void *log_user;
    int32_t device; /* index of the GPU, for a plan of TensorRT; the calling thread's current device stays as it is */
} videossm_plan_options;

typedef struct videossm_plan_info {
    size_t size_bytes;
    const char *name, *precision, *backend, *identity; /* as long as the plan; identity: 64 hexadecimal digits */
    double fps;
    int64_t batch, height, width;
    int64_t first_frames, later_frames; /* of the first chunk, and of each later one */
    int64_t chunks;                     /* after which a clip ends; 0 for an endless stream */
    int64_t text_length;                /* of a prompt in tokens; 0 for a plan without text */
    int32_t takes_text;                 /* 0: this library cannot read its tokenizer, so prompts are token ids */
    int32_t takes_samples;              /* for videossm_rollout_append */
    size_t sample_count;                /* numbers of a sample, batch included */
    size_t state_bytes;                 /* of a saved state, without its header */
    size_t engine_count, pass_count;
} videossm_plan_info;

#define VIDEOSSM_PLAN_OPTIONS {sizeof(videossm_plan_options), 0, NULL, NULL, 0}

/* `path`: of the plan's folder, or of any file in it. `options`: NULL for the defaults. */
VIDEOSSM_API videossm_status videossm_plan_open(const char *path, const videossm_plan_options *options,
                                                videossm_plan **plan, videossm_error **error);
/* Fills as much as info->size_bytes has room for. */
VIDEOSSM_API videossm_status videossm_plan_describe(const videossm_plan *plan, videossm_plan_info *info,
                                                    videossm_error **error);
VIDEOSSM_API void videossm_plan_free(videossm_plan *plan);

/* Rollouts */

typedef struct videossm_rollout_options {
    size_t size_bytes;
    /* A prompt for each stream of the batch, or token ids and mask instead, [batch, text_length] each; none for a plan
       without text. */
    const char *const *prompts;
    size_t prompt_count;
    const int64_t *ids, *mask;
    /* One for each stream of the batch; a single one s stands for s, s + 1, ..; none for 0. */
    const uint64_t *seeds;
    size_t seed_count;
    /* Told after each pass of a chunk. May be NULL. */
    void (*progress)(void *user, int64_t chunk, size_t passes_done, size_t pass_count);
    void *progress_user;
} videossm_rollout_options;

/* Frames are uint8 RGB: pixel x of row y of frame t of stream b begins at
   pixels + b * stream_stride + t * frame_stride + y * row_stride + 3 x. */
typedef struct videossm_chunk {
    int64_t index;
    double start_s; /* of the first frame in the video */
    int64_t batch, frames, height, width;
    const uint8_t *pixels; /* the rollout's own until its next call, or where the caller wanted them */
    size_t stream_stride, frame_stride, row_stride;
} videossm_chunk;

/* Memory of the caller's for frames. */
typedef struct videossm_target {
    uint8_t *pixels;
    size_t size_bytes;
    size_t stream_stride, frame_stride, row_stride; /* 0: without gaps */
} videossm_target;

#define VIDEOSSM_ROLLOUT_OPTIONS {sizeof(videossm_rollout_options), NULL, 0, NULL, NULL, NULL, 0, NULL, NULL}

VIDEOSSM_API videossm_status videossm_rollout_create(videossm_plan *plan, const videossm_rollout_options *options,
                                                     videossm_rollout **rollout, videossm_error **error);
VIDEOSSM_API void videossm_rollout_free(videossm_rollout *rollout);

/* Makes the next chunk. `target`: NULL for a view. VIDEOSSM_ENDED after a clip's last one. After an error in the middle
   of a change of the state the rollout is lost and says so; other errors leave the state as it was. */
VIDEOSSM_API videossm_status videossm_rollout_next(videossm_rollout *rollout, const videossm_target *target,
                                                   videossm_chunk *chunk, videossm_error **error);
/* Takes a clean sample [batch, ..] as the next chunk, instead of making one. `count`: its numbers. */
VIDEOSSM_API videossm_status videossm_rollout_append(videossm_rollout *rollout, const float *sample, size_t count,
                                                     const videossm_target *target, videossm_chunk *chunk,
                                                     videossm_error **error);
/* Bytes that a target without gaps needs for the next chunk. */
VIDEOSSM_API size_t videossm_rollout_next_bytes(const videossm_rollout *rollout);
/* Index of the chunk that comes next. */
VIDEOSSM_API int64_t videossm_rollout_next_index(const videossm_rollout *rollout);
/* The clean sample [batch, ..] of the chunk that was made last. `count`: numbers that `sample` has room for, then those
   that it has; with `sample` NULL only that. */
VIDEOSSM_API videossm_status videossm_rollout_sample(videossm_rollout *rollout, float *sample, size_t *count,
                                                     videossm_error **error);

/* Takes effect at the start of the next chunk; a wrong prompt is refused here. From any thread. */
VIDEOSSM_API videossm_status videossm_rollout_set_prompt(videossm_rollout *rollout, const char *const *prompts,
                                                         size_t prompt_count, videossm_error **error);
/* The same by token ids and mask, [batch, text_length] each. A state that holds such a prompt cannot be saved. */
VIDEOSSM_API videossm_status videossm_rollout_set_prompt_ids(videossm_rollout *rollout, const int64_t *ids,
                                                             const int64_t *mask, videossm_error **error);
/* Ends videossm_rollout_next before its next pass, or else before the next chunk, once; the call after that makes the
   same chunk anew. From any thread. */
VIDEOSSM_API void videossm_rollout_cancel(videossm_rollout *rollout);

/* Writes the state whole or not at all; videossm-run --resume reads it too. */
VIDEOSSM_API videossm_status videossm_rollout_save(videossm_rollout *rollout, const char *path, videossm_error **error);
/* The rollout as it was saved, by this plan or another of the same stream; of `options` only progress counts. */
VIDEOSSM_API videossm_status videossm_rollout_resume(videossm_plan *plan, const char *path,
                                                     const videossm_rollout_options *options,
                                                     videossm_rollout **rollout, videossm_error **error);
/* An independent rollout that goes on from the same state, over the same weights; without progress. */
VIDEOSSM_API videossm_status videossm_rollout_fork(videossm_rollout *rollout, videossm_rollout **fork,
                                                   videossm_error **error);
/* The state as it is now, in memory, for any rollout of the same plan. */
VIDEOSSM_API videossm_status videossm_rollout_snapshot(videossm_rollout *rollout, videossm_snapshot **snapshot,
                                                       videossm_error **error);
VIDEOSSM_API videossm_status videossm_rollout_restore(videossm_rollout *rollout, const videossm_snapshot *snapshot,
                                                      videossm_error **error);
VIDEOSSM_API void videossm_snapshot_free(videossm_snapshot *snapshot);

/* Seconds inside engine `index` so far, and its name, which lasts as long as the plan. */
VIDEOSSM_API videossm_status videossm_rollout_timing(const videossm_rollout *rollout, size_t index, const char **engine,
                                                     double *seconds, videossm_error **error);

#ifdef __cplusplus
}
#endif

#endif
