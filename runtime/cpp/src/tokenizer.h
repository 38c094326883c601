// Word-level tokenizers, as in docs/plan-format.md. Other files are for the Python package `tokenizers`: a plan with
// one takes token ids only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "manifest.h"

namespace videossm::internal {

class WordLevel {
public:
    struct Token {
        int64_t id;
        std::string_view text;  // a part of the prompt
    };

    // `content`: of tokenizer.json. Null unless all that it says is known here; throws JsonError for no JSON at all.
    static std::unique_ptr<WordLevel> read(std::string_view content);

    // `prompt` is valid UTF-8.
    std::vector<Token> tokens(std::string_view prompt) const;

    // Does the id stand for no word?
    bool reserved(int64_t id) const { return reserved_.count(id) != 0; }

    // By id, without the special tokens.
    std::vector<std::string> words() const;

private:
    enum class Kind { space, letter, punctuation };
    Kind kind(char32_t character) const;
    void add_words(std::string_view part, std::vector<Token>& found) const;
    int64_t id_of(std::string_view word) const;

    std::unordered_map<std::string, int64_t> vocabulary_;
    std::vector<std::string> special_;  // longest first
    std::unordered_set<int64_t> reserved_;
    int64_t unknown_ = 0;
    bool lowercase_ = false, punctuation_ = false;
};

// Appends the ids of `prompt` and their mask, each of text.length numbers. Throws Error.
void encode_prompt(const WordLevel& tokenizer, const Text& text, std::string_view prompt, std::vector<int64_t>& ids,
                   std::vector<int64_t>& mask);

}  // namespace videossm::internal
