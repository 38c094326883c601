# videossm_scans_cpu: the scans on the threads of the calling process.
find_package(Threads REQUIRED)

# All but the threads, for every library that has the scans on a CPU.
add_library(videossm_scans_cpu_objects INTERFACE)
target_sources(videossm_scans_cpu_objects INTERFACE
    cpu/choose_kernels.cpp cpu/gated_delta.cpp cpu/selective_scan.cpp cpu/environment.cpp
    $<TARGET_OBJECTS:videossm_scans_common>)
target_include_directories(videossm_scans_cpu_objects INTERFACE ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(videossm_scans_cpu_objects INTERFACE videossm_scans_interface Threads::Threads)

add_library(videossm_scans_cpu SHARED cpu/threads.cpp)
target_link_libraries(videossm_scans_cpu PUBLIC videossm_scans_interface
                      PRIVATE videossm_scans_cpu_objects videossm_warnings)
# Its threads wait in its code as long as the process lives: it must stay in memory after dlclose.
target_link_options(videossm_scans_cpu PRIVATE LINKER:-z,nodelete LINKER:-z,defs)

# kernels.cpp once for each instruction set; the library takes the best that the processor has when it runs.
# -fno-math-errno and -fno-trapping-math change no number; they let loops with square roots and comparisons
# be vectors.
function(videossm_add_kernels set)
    add_library(videossm_kernels_${set} OBJECT cpu/kernels.cpp)
    target_compile_definitions(videossm_kernels_${set} PRIVATE VIDEOSSM_SET=${set})
    target_compile_options(videossm_kernels_${set} PRIVATE
        -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wno-psabi ${ARGN})
    target_include_directories(videossm_kernels_${set} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
    target_link_libraries(videossm_kernels_${set} PRIVATE videossm_scans_interface videossm_warnings)
    target_sources(videossm_scans_cpu_objects INTERFACE $<TARGET_OBJECTS:videossm_kernels_${set}>)
endfunction()

videossm_add_kernels(generic)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    target_compile_definitions(videossm_scans_cpu_objects INTERFACE VIDEOSSM_X86)
    videossm_add_kernels(avx2 -mavx2 -mfma -mf16c)
    videossm_add_kernels(avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl
                         -mprefer-vector-width=512)
endif()
