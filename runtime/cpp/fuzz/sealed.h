// A manifest whose checksum holds, of the bytes before its digits.
#pragma once

#include <string>

#include "sha256.h"

inline std::string sealed(const std::string& before) {
    videossm::internal::Sha256 hash;
    hash.update(before.data(), before.size());
    return before + hash.digits() + "\"\n}\n";
}
