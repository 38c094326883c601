#ifndef VIDEOSSM_PLUGIN_ERROR_H
#define VIDEOSSM_PLUGIN_ERROR_H

#include <stdexcept>
#include <string>

namespace videossm {

/* One line, `scan: what: got X, expected Y; do Z`. It stays inside of the plugin: TensorRT is given a status.
 */
class ScanError : public std::runtime_error {
public:
    enum class Cause { ARGUMENT, DEVICE };  // refused; or started, and then failed

    ScanError(const std::string& text, Cause why) : std::runtime_error(text), cause(why) {}

    const Cause cause;
};

[[noreturn]] inline void refuse(const std::string& scan, const std::string& reason) {
    throw ScanError(scan + ": " + reason, ScanError::Cause::ARGUMENT);
}

}  // namespace videossm

#endif
