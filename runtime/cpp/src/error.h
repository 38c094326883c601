// What can go wrong, as one exception that the C interface turns into a status and a text.
#pragma once

#include <stdexcept>
#include <string>

#include "videossm/videossm.h"

namespace videossm::internal {

// The text is one line: "what: got X, expected Y; do Z".
class Error : public std::runtime_error {
public:
    Error(videossm_status status, const std::string& text) : std::runtime_error(text), status(status) {}
    const videossm_status status;
};

inline Error plan_error(const std::string& text) { return {VIDEOSSM_ERROR_PLAN, text}; }
inline Error state_error(const std::string& text) { return {VIDEOSSM_ERROR_STATE, text}; }
inline Error prompt_error(const std::string& text) { return {VIDEOSSM_ERROR_PROMPT, text}; }
inline Error backend_error(const std::string& text) { return {VIDEOSSM_ERROR_BACKEND, text}; }
inline Error argument_error(const std::string& text) { return {VIDEOSSM_ERROR_ARGUMENT, text}; }

// What a file says, as a part of one line: white space and control characters become spaces, and it ends after
// `most_bytes`.
std::string shown(const std::string& text, size_t most_bytes = 200);

}  // namespace videossm::internal
