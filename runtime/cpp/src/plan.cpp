// Opening a plan for rollouts, and prompts as its engines take them.
#include <chrono>

#include "error.h"
#include "files.h"
#include "json.h"
#include "rollout.h"

namespace videossm::internal {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::unique_ptr<WordLevel> read_tokenizer(const std::filesystem::path& file) {
    try {
        return WordLevel::read(read_whole(file));
    } catch (const JsonError& error) {
        throw plan_error(std::string(kTokenizerFile) + ": got no tokenizer (" + shown(error.what) + "); export the plan again");
    }
}

void need_text(const Plan& plan) {
    if (!plan.manifest().text) {
        throw prompt_error("prompt: got one for a plan without text, expected none; leave it out");
    }
}

}  // namespace

std::shared_ptr<const Plan> open_plan(const std::string& path, int threads, int device, const Log& log) {
    auto plan = std::make_shared<Plan>();
    const auto start = std::chrono::steady_clock::now();
    plan->files = open_plan_files(path);
    const Manifest& manifest = plan->manifest();
    log(manifest.name + ": files checked in " + std::to_string(seconds_since(start)) + " s");
    if (manifest.text) {
        plan->tokenizer = read_tokenizer(plan->files.folder / kTokenizerFile);
    }
    plan->backend = open_backend(manifest, threads, device);
    for (const auto& [name, spec] : manifest.engines) {
        const auto loading = std::chrono::steady_clock::now();
        plan->engines[name] = plan->backend->load(spec, text_of(plan->files.folder / path_of(spec.file)));
        log(name + ": loaded in " + std::to_string(seconds_since(loading)) + " s");
    }
    return plan;
}

Prompts encode_prompts(const Plan& plan, const std::vector<std::string>& texts) {
    need_text(plan);
    const auto batch = static_cast<size_t>(plan.manifest().stream.batch);
    if (texts.size() != batch) {
        throw prompt_error("prompt: got " + std::to_string(texts.size()) + ", expected " + std::to_string(batch) +
                           ", the plan's batch; add or drop some");
    }
    if (!plan.tokenizer) {
        throw prompt_error("prompt: got a text for a tokenizer that is not word-level, expected token ids; "
                           "make them with the Python package tokenizers");
    }
    Prompts prompts;
    prompts.texts = texts;
    for (const std::string& text : texts) {
        encode_prompt(*plan.tokenizer, *plan.manifest().text, text, prompts.ids, prompts.mask);
    }
    return prompts;
}

Prompts prompts_of_ids(const Plan& plan, const int64_t* ids, const int64_t* mask) {
    need_text(plan);
    const auto count = static_cast<size_t>(plan.manifest().stream.batch * plan.manifest().text->length);
    for (size_t i = 0; i < count; ++i) {
        if (ids[i] < 0 || mask[i] < 0 || mask[i] > 1) {
            throw prompt_error("prompt: got token id " + std::to_string(ids[i]) + " with mask " + std::to_string(mask[i]) +
                               ", expected 0 or more, and 0 or 1; encode it again");
        }
    }
    Prompts prompts;
    prompts.ids.assign(ids, ids + count);
    prompts.mask.assign(mask, mask + count);
    return prompts;
}

}  // namespace videossm::internal
