// A library that is loaded while the program runs.
#pragma once

namespace videossm::internal {

// Of the library `file`, found as the system finds libraries, beside this one too. It stays loaded. Throws Error.
void* symbol_of(const char* file, const char* name);

}  // namespace videossm::internal
