/* Opens the plan of the first argument and prints a frame's mean: 2 and a line for an error. */
#include <stdio.h>
#include <videossm/videossm.h>

int main(int argc, char **argv) {
    videossm_error *error = NULL;
    videossm_plan *plan = NULL;
    videossm_rollout *rollout = NULL;
    videossm_chunk chunk;
    const char *prompt = "a red circle";
    videossm_rollout_options options = VIDEOSSM_ROLLOUT_OPTIONS;
    double sum = 0;
    options.prompts = &prompt;
    options.prompt_count = 1;
    if (videossm_plan_open(argc > 1 ? argv[1] : "", NULL, &plan, &error) != VIDEOSSM_OK ||
        videossm_rollout_create(plan, &options, &rollout, &error) != VIDEOSSM_OK ||
        videossm_rollout_next(rollout, NULL, &chunk, &error) != VIDEOSSM_OK) {
        fprintf(stderr, "%s\n", videossm_error_text(error));
        videossm_error_free(error);
        videossm_plan_free(plan);
        return 2;
    }
    for (size_t i = 0; i < chunk.frame_stride; ++i) {
        sum += chunk.pixels[i];
    }
    printf("%lld frames, mean %.3f\n", (long long)chunk.frames, sum / (double)chunk.frame_stride);
    videossm_rollout_free(rollout);
    videossm_plan_free(plan);
    return videossm_version() == 100 ? 0 : 1;
}
