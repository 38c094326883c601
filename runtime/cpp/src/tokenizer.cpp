#include "tokenizer.h"

#include <algorithm>

#include "error.h"
#include "json.h"
#include "unicode.h"

namespace videossm::internal {
namespace {

constexpr size_t kWordsShown = 64;

bool is_ascii(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// Are the members exactly these, in any order?
bool has_members(const Json& value, std::initializer_list<const char*> names) {
    return value.is(Json::Kind::object) && value.members.size() == names.size() &&
           std::all_of(names.begin(), names.end(), [&](const char* name) { return value.find(name) != nullptr; });
}

bool is_null(const Json& value) { return value.is(Json::Kind::null); }

bool is_type(const Json& value, const char* type) { return has_members(value, {"type"}) && value.find("type")->is_string(type); }

bool is_flag(const Json& value, const char* name, bool expected) {
    const Json& flag = *value.find(name);
    return flag.is(Json::Kind::boolean) && flag.boolean == expected;
}

}  // namespace

std::unique_ptr<WordLevel> WordLevel::read(std::string_view content) {
    const Json file = Json::parse(content);
    if (!has_members(file, {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                            "post_processor", "decoder", "model"}) ||
        !file.find("version")->is_string("1.0") || !is_null(*file.find("truncation")) ||
        !is_null(*file.find("padding")) || !is_null(*file.find("post_processor")) || !is_null(*file.find("decoder"))) {
        return nullptr;
    }
    auto made = std::make_unique<WordLevel>();
    const Json& normalizer = *file.find("normalizer");
    const Json& splitter = *file.find("pre_tokenizer");
    made->lowercase_ = is_type(normalizer, "Lowercase");
    made->punctuation_ = is_type(splitter, "Whitespace");
    if (!(made->lowercase_ || is_null(normalizer)) || !(made->punctuation_ || is_type(splitter, "WhitespaceSplit"))) {
        return nullptr;
    }
    const Json& model = *file.find("model");
    if (!has_members(model, {"type", "vocab", "unk_token"}) || !model.find("type")->is_string("WordLevel") ||
        !model.find("vocab")->is(Json::Kind::object) || !model.find("unk_token")->is(Json::Kind::string)) {
        return nullptr;
    }
    for (const auto& [word, id] : model.find("vocab")->members) {
        if (!is_ascii(word) || !id.is(Json::Kind::integer) || id.integer < 0 || id.integer >= int64_t{1} << 32) {
            return nullptr;
        }
        made->vocabulary_.emplace(word, id.integer);
    }
    const auto unknown = made->vocabulary_.find(model.find("unk_token")->string);
    const Json& added = *file.find("added_tokens");
    if (unknown == made->vocabulary_.end() || !added.is(Json::Kind::array)) {
        return nullptr;
    }
    made->unknown_ = unknown->second;
    made->reserved_.insert(unknown->second);
    for (const Json& token : added.items) {
        if (!has_members(token, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}) ||
            !is_flag(token, "single_word", false) || !is_flag(token, "lstrip", false) ||
            !is_flag(token, "rstrip", false) || !is_flag(token, "normalized", false) ||
            !is_flag(token, "special", true) || !token.find("content")->is(Json::Kind::string)) {
            return nullptr;
        }
        const std::string& text = token.find("content")->string;
        const auto found = made->vocabulary_.find(text);
        const Json& id = *token.find("id");
        if (text.empty() || found == made->vocabulary_.end() || !id.is(Json::Kind::integer) || id.integer != found->second) {
            return nullptr;
        }
        made->special_.push_back(text);
        made->reserved_.insert(found->second);
    }
    std::stable_sort(made->special_.begin(), made->special_.end(),
                     [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
    return made;
}

std::vector<WordLevel::Token> WordLevel::tokens(std::string_view prompt) const {
    std::vector<Token> found;
    size_t start = 0;
    for (size_t i = 0; i < prompt.size();) {
        const auto token = std::find_if(special_.begin(), special_.end(), [&](const std::string& each) {
            return prompt.compare(i, each.size(), each) == 0;
        });
        if (token == special_.end()) {
            ++i;
            continue;
        }
        add_words(prompt.substr(start, i - start), found);
        found.push_back({vocabulary_.at(*token), prompt.substr(i, token->size())});
        i += token->size();
        start = i;
    }
    add_words(prompt.substr(start), found);
    return found;
}

void WordLevel::add_words(std::string_view part, std::vector<Token>& found) const {
    size_t start = 0;
    Kind current = Kind::space;
    for (size_t i = 0; i <= part.size();) {
        const CodePoint point = i < part.size() ? code_point(part, i) : CodePoint{U' ', 1};
        const Kind next = kind(point.value);
        if (next != current || i == part.size()) {
            if (current != Kind::space) {
                const std::string_view word = part.substr(start, i - start);
                found.push_back({id_of(word), word});
            }
            start = i;
            current = next;
        }
        i += std::max(point.bytes, 1u);
    }
}

WordLevel::Kind WordLevel::kind(char32_t character) const {
    if (is_white_space(character)) {
        return Kind::space;
    }
    return !punctuation_ || is_word_character(character) ? Kind::letter : Kind::punctuation;
}

// As the vocabulary is ASCII, lower case is that of ASCII and of the Kelvin sign, which becomes k.
int64_t WordLevel::id_of(std::string_view word) const {
    std::string key(word);
    if (lowercase_) {
        for (char& c : key) {
            c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
        }
        constexpr std::string_view kKelvin = "\xE2\x84\xAA";
        for (size_t at = key.find(kKelvin); at != std::string::npos; at = key.find(kKelvin, at)) {
            key.replace(at, kKelvin.size(), "k");
        }
    }
    const auto found = vocabulary_.find(key);
    return found == vocabulary_.end() ? unknown_ : found->second;
}

std::vector<std::string> WordLevel::words() const {
    std::vector<std::pair<int64_t, std::string>> by_id;
    for (const auto& [word, id] : vocabulary_) {
        if (!reserved(id)) {
            by_id.emplace_back(id, word);
        }
    }
    std::sort(by_id.begin(), by_id.end());
    std::vector<std::string> words;
    for (auto& [id, word] : by_id) {
        words.push_back(std::move(word));
    }
    return words;
}

void encode_prompt(const WordLevel& tokenizer, const Text& text, std::string_view prompt, std::vector<int64_t>& ids,
                   std::vector<int64_t>& mask) {
    bool empty = true;
    for (size_t i = 0; i < prompt.size();) {
        const CodePoint point = code_point(prompt, i);
        if (point.bytes == 0) {
            throw prompt_error("prompt: got a text that is no UTF-8, expected UTF-8; encode it so");
        }
        empty = empty && (is_white_space(point.value) || (point.value >= 0x1C && point.value <= 0x1F));
        i += point.bytes;
    }
    if (empty) {
        throw prompt_error("prompt: got an empty text, expected words; describe the video");
    }
    const std::vector<WordLevel::Token> tokens = tokenizer.tokens(prompt);
    for (const WordLevel::Token& token : tokens) {
        if (text.refuses_unknown && (tokenizer.reserved(token.id) || token.id == text.padding_id)) {
            std::string words;
            size_t count = 0;
            for (const std::string& word : tokenizer.words()) {
                if (count++ == kWordsShown) {
                    words += " ..";
                    break;
                }
                words += (words.empty() ? "" : " ") + word;
            }
            throw prompt_error("prompt: got the unknown word '" + shown(std::string(token.text)) +
                               "', expected words among: " + words + "; replace it");
        }
    }
    const auto length = static_cast<size_t>(text.length);
    if (tokens.size() > length) {
        throw prompt_error("prompt: got " + std::to_string(tokens.size()) + " tokens, expected at most " +
                           std::to_string(length) + "; shorten it");
    }
    for (size_t i = 0; i < length; ++i) {
        ids.push_back(i < tokens.size() ? tokens[i].id : text.padding_id);
        mask.push_back(i < tokens.size());
    }
}

}  // namespace videossm::internal
