#include "shared_library.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <dlfcn.h>
#endif

#include "error.h"

namespace videossm::internal {

void* symbol_of(const char* file, const char* name) {
#if defined(_WIN32)
    const HMODULE library = LoadLibraryA(file);
    void* symbol = library ? reinterpret_cast<void*>(GetProcAddress(library, name)) : nullptr;
    const std::string why = "error " + std::to_string(GetLastError());
#else
    void* library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    void* symbol = library ? dlsym(library, name) : nullptr;
    const char* told = symbol ? nullptr : dlerror();
    const std::string why = told ? told : "no reason given";
#endif
    if (!symbol) {
        throw backend_error("backend: got no " + std::string(file) + " (" + shown(why) +
                            "), expected it among the system's libraries or beside this one; put it there");
    }
    return symbol;
}

}  // namespace videossm::internal
