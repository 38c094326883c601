// Which characters end a word: Unicode's White_Space, and its \w.
#pragma once

namespace videossm::internal {

bool is_white_space(char32_t character);
bool is_word_character(char32_t character);

}  // namespace videossm::internal
