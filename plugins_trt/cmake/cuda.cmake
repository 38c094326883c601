# videossm_scans_cuda: the scans on a CUDA stream. It holds CUDA's runtime; a machine needs the driver alone.
set(VIDEOSSM_CUDA_ARCHITECTURES "" CACHE STRING
    "for CMAKE_CUDA_ARCHITECTURES; if empty 8.0 to 9.0, and 12.0 where nvcc has it")
set(VIDEOSSM_CUDA_SOURCES launch)
foreach(type fp32 fp16 bf16)
    list(APPEND VIDEOSSM_CUDA_SOURCES gated_delta_${type} selective_scan_${type})
endforeach()

# 9.0 also as code that any later device compiles at its first use. 10.0 and 10.3 do so, too: compiled here,
# gated_delta_scan of 16 bits with an output spills up to 12 bytes for them (nvcc 13.0), which is an error.
function(choose_architectures result)
    set(chosen "80-real;86-real;89-real;90")
    if(CMAKE_CUDA_COMPILER)
        set(nvcc ${CMAKE_CUDA_COMPILER})
    elseif(DEFINED ENV{CUDACXX})
        set(nvcc $ENV{CUDACXX})
    else()
        find_program(VIDEOSSM_NVCC nvcc PATHS /usr/local/cuda/bin)
        set(nvcc ${VIDEOSSM_NVCC})
    endif()
    execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed AND known MATCHES "compute_120\n")
        list(APPEND chosen 120-real)
    endif()
    set(${result} "${chosen}" PARENT_SCOPE)
endfunction()

include(CheckLanguage)
if(VIDEOSSM_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES ${VIDEOSSM_CUDA_ARCHITECTURES})
else()
    choose_architectures(CMAKE_CUDA_ARCHITECTURES)
endif()
check_language(CUDA)
if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    # By their objects, for who links them into a library of his own.
    list(TRANSFORM VIDEOSSM_CUDA_SOURCES REPLACE "(.+)" "kernels/\\1.cu" OUTPUT_VARIABLE VIDEOSSM_CUDA_FILES)
    add_library(videossm_scans_cuda_objects OBJECT ${VIDEOSSM_CUDA_FILES})
    set_target_properties(videossm_scans_cuda_objects PROPERTIES
        CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF CUDA_VISIBILITY_PRESET hidden)
    # -v: registers and spills of every kernel, for benchmarks/kernel_resources.py.
    target_compile_options(videossm_scans_cuda_objects PRIVATE
        -Werror=all-warnings -Xptxas=-v,-warn-spills,-warn-lmem-usage -Xcompiler=-Wall,-Wextra,-Werror)
    target_include_directories(videossm_scans_cuda_objects PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
    target_link_libraries(videossm_scans_cuda_objects PUBLIC videossm_scans_interface)

    add_library(videossm_scans_cuda SHARED)
    target_link_libraries(videossm_scans_cuda PUBLIC videossm_scans_interface
                          PRIVATE videossm_scans_cuda_objects videossm_scans_common)
    target_link_options(videossm_scans_cuda PRIVATE LINKER:-z,defs)
    set_target_properties(videossm_scans_cuda PROPERTIES LINKER_LANGUAGE CUDA CUDA_RUNTIME_LIBRARY Static)
else()
    list(APPEND VIDEOSSM_LEFT_OUT "videossm_scans_cuda: no nvcc, set CUDACXX or CMAKE_CUDA_COMPILER")
endif()

# The same kernels on a host, for the tests: see tests/plugins_trt/emulator.
set(VIDEOSSM_EMULATOR ${CMAKE_CURRENT_SOURCE_DIR}/../tests/plugins_trt/emulator)
if(EXISTS ${VIDEOSSM_EMULATOR})
    add_library(videossm_scans_emulated SHARED EXCLUDE_FROM_ALL ${VIDEOSSM_EMULATOR}/emulator.cpp)
    foreach(source ${VIDEOSSM_CUDA_SOURCES})
        set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/emulated/${source}.cpp)
        file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"kernels/${source}.cu\"\n")
        target_sources(videossm_scans_emulated PRIVATE ${wrapper})
    endforeach()
    target_include_directories(videossm_scans_emulated PRIVATE ${VIDEOSSM_EMULATOR} ${CMAKE_CURRENT_SOURCE_DIR})
    target_compile_options(videossm_scans_emulated PRIVATE
        -O2 -Wall -Wextra -Wconversion -Wno-unknown-pragmas -Werror)
    target_link_libraries(videossm_scans_emulated PRIVATE videossm_scans_common)
endif()
