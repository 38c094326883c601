// A plan and a prompt to a YUV4MPEG2 file, which any player and ffmpeg reads: generate PLAN PROMPT SECONDS OUT.y4m
//
// OUT - is the standard output: generate engine.plan "a red circle bounces on gray" 5 - | ffmpeg -i - video.mp4
#include <videossm/videossm.hpp>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace {

// BT.601 in the studio's range, which y4m has where it says nothing else; chroma is not subsampled.
struct Yuv {
    std::vector<unsigned char> y, u, v;

    void take(const uint8_t* pixels, int64_t width, int64_t height, size_t row_stride) {
        y.clear();
        u.clear();
        v.clear();
        for (int64_t row = 0; row < height; ++row) {
            const uint8_t* pixel = pixels + static_cast<size_t>(row) * row_stride;
            for (int64_t column = 0; column < width; ++column, pixel += 3) {
                const double r = pixel[0] / 255.0, g = pixel[1] / 255.0, b = pixel[2] / 255.0;
                put(y, 16 + 65.481 * r + 128.553 * g + 24.966 * b);
                put(u, 128 - 37.797 * r - 74.203 * g + 112.0 * b);
                put(v, 128 + 112.0 * r - 93.786 * g - 18.214 * b);
            }
        }
    }

    static void put(std::vector<unsigned char>& plane, double value) {
        plane.push_back(static_cast<unsigned char>(std::clamp(value + 0.5, 0.0, 255.0)));
    }
};

int generate(const std::string& path, const std::string& prompt, double seconds, const std::string& out) {
    const videossm::Plan plan(path);
    const videossm_plan_info info = plan.info();
    const std::vector<std::string> prompts(info.text_length ? static_cast<size_t>(info.batch) : 0, prompt);
    videossm::Rollout rollout(plan, prompts);
    const std::unique_ptr<FILE, int (*)(FILE*)> file(out == "-" ? stdout : std::fopen(out.c_str(), "wb"), std::fclose);
    if (!file) {
        std::fprintf(stderr, "out: got %s, which cannot be written, expected a file; choose another\n", out.c_str());
        return 2;
    }
    std::fprintf(file.get(), "YUV4MPEG2 W%lld H%lld F%lld:1000 Ip A1:1 C444\n", static_cast<long long>(info.width),
                 static_cast<long long>(info.height), static_cast<long long>(info.fps * 1000 + 0.5));
    Yuv yuv;
    for (auto left = static_cast<int64_t>(seconds * info.fps + 0.5); left > 0;) {
        const auto chunk = rollout.next();
        if (!chunk) {
            break;  // the clip is over
        }
        for (int64_t t = 0; t < chunk->frames && left > 0; ++t, --left) {  // of the first stream
            yuv.take(chunk->pixels + static_cast<size_t>(t) * chunk->frame_stride, chunk->width, chunk->height, chunk->row_stride);
            std::fputs("FRAME\n", file.get());
            for (const auto* plane : {&yuv.y, &yuv.u, &yuv.v}) {
                std::fwrite(plane->data(), 1, plane->size(), file.get());
            }
        }
    }
    if (std::fflush(file.get()) != 0 || std::ferror(file.get())) {
        std::fprintf(stderr, "out: cannot write %s, expected room for it; free some\n", out.c_str());
        return 2;
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    const double seconds = argc == 5 ? std::atof(argv[3]) : 0;
    if (!(seconds > 0 && seconds < 1e9)) {
        std::fprintf(stderr, "usage: generate PLAN PROMPT SECONDS OUT.y4m; SECONDS is more than 0\n");
        return 2;
    }
    try {
        return generate(argv[1], argv[2], seconds, argv[4]);
    } catch (const videossm::Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
