# videossm_plugins: TensorRT's plugins around the CUDA scans. Built where the headers of TensorRT 11 are found, by
# TensorRT_INCLUDE_DIR, TENSORRT_INCLUDE_DIR or TensorRT_ROOT (variables of CMake or of the environment). They need
# cuda_runtime_api.h beside them, and no library of TensorRT.

# What a plugin does without TensorRT; the tests drive it where there are no headers.
add_library(videossm_plugin_core OBJECT plugin/fields.cpp plugin/gated_delta.cpp plugin/scan.cpp plugin/selective.cpp)
target_include_directories(videossm_plugin_core PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
target_link_libraries(videossm_plugin_core PUBLIC videossm_scans_interface PRIVATE videossm_warnings)

find_path(VIDEOSSM_TENSORRT_HEADERS NvInferRuntime.h
          HINTS ${TensorRT_INCLUDE_DIR} $ENV{TensorRT_INCLUDE_DIR} ${TENSORRT_INCLUDE_DIR} $ENV{TENSORRT_INCLUDE_DIR}
                ${TensorRT_ROOT} $ENV{TensorRT_ROOT}
          PATH_SUFFIXES include DOC "folder of NvInferRuntime.h")
find_package(CUDAToolkit QUIET)
find_path(VIDEOSSM_CUDA_HEADERS cuda_runtime_api.h HINTS ${CUDAToolkit_INCLUDE_DIRS} $ENV{CUDA_HOME} /usr/local/cuda
          PATH_SUFFIXES include DOC "folder of cuda_runtime_api.h")

set(VIDEOSSM_TENSORRT_MISSING "")
if(NOT VIDEOSSM_TENSORRT_HEADERS)
    set(VIDEOSSM_TENSORRT_MISSING "no headers of TensorRT, set TensorRT_INCLUDE_DIR or TensorRT_ROOT")
elseif(NOT VIDEOSSM_CUDA_HEADERS)
    set(VIDEOSSM_TENSORRT_MISSING "no cuda_runtime_api.h, which TensorRT's headers need, set CUDAToolkit_ROOT")
else()
    file(STRINGS ${VIDEOSSM_TENSORRT_HEADERS}/NvInferVersion.h VIDEOSSM_TENSORRT_MAJOR
         REGEX "^#define (TRT|NV_TENSORRT)_MAJOR(_ENTERPRISE)? [0-9]+")
    if(NOT VIDEOSSM_TENSORRT_MAJOR MATCHES " ([0-9]+)" OR CMAKE_MATCH_1 LESS 11)
        set(VIDEOSSM_TENSORRT_MISSING "the headers in ${VIDEOSSM_TENSORRT_HEADERS} are not of TensorRT 11 or later")
    endif()
endif()

# A library of plugins around a library of the scans. It exports getCreators and setLoggerFinder alone.
function(videossm_add_plugins name)
    add_library(${name} SHARED plugin/library.cpp)
    target_link_libraries(${name} PRIVATE videossm_plugin_core videossm_plugin_tensorrt videossm_warnings ${ARGN})
    target_link_options(${name} PRIVATE LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/plugin/exports.map
                        LINKER:--no-undefined)
    set_target_properties(${name} PROPERTIES LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/plugin/exports.map)
endfunction()

if(VIDEOSSM_TENSORRT_MISSING)
    list(APPEND VIDEOSSM_LEFT_OUT "videossm_plugins: ${VIDEOSSM_TENSORRT_MISSING}")
else()
    add_library(videossm_plugin_tensorrt OBJECT plugin/report.cpp plugin/scan_creator.cpp plugin/scan_plugin.cpp)
    target_include_directories(videossm_plugin_tensorrt PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
    target_include_directories(videossm_plugin_tensorrt SYSTEM PUBLIC ${VIDEOSSM_TENSORRT_HEADERS}
                               ${VIDEOSSM_CUDA_HEADERS})
    target_link_libraries(videossm_plugin_tensorrt PUBLIC videossm_scans_interface PRIVATE videossm_warnings)
    if(TARGET videossm_scans_cuda_objects)
        # By their objects, so that one file is all that an engine needs to bring along.
        videossm_add_plugins(videossm_plugins videossm_scans_cuda_objects videossm_scans_common)
    elseif(TARGET videossm_scans_cuda)
        videossm_add_plugins(videossm_plugins videossm_scans_cuda)
    else()
        list(APPEND VIDEOSSM_LEFT_OUT "videossm_plugins: no videossm_scans_cuda to put them around")
    endif()
endif()

# Of the tests, which build the target plugin_tests and read why it is without TensorRT, if it is.
set(VIDEOSSM_HARNESS ${CMAKE_CURRENT_SOURCE_DIR}/../tests/plugins_trt)
if(EXISTS ${VIDEOSSM_HARNESS}/harness.cpp)
    function(videossm_add_harness name)
        list(TRANSFORM ARGN PREPEND ${VIDEOSSM_HARNESS}/)
        add_executable(${name} EXCLUDE_FROM_ALL ${ARGN} ${VIDEOSSM_HARNESS}/harness_problem.cpp
                       ${VIDEOSSM_HARNESS}/harness_mistakes.cpp)
        target_link_libraries(${name} PRIVATE videossm_plugin_core videossm_scans_cpu videossm_warnings)
        add_dependencies(plugin_tests ${name})
    endfunction()

    add_custom_target(plugin_tests)
    file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/plugin_tests_left_out.txt "${VIDEOSSM_TENSORRT_MISSING}")
    videossm_add_harness(videossm_plugin_core_harness harness_core.cpp)
    if(NOT VIDEOSSM_TENSORRT_MISSING)
        videossm_add_harness(videossm_plugin_harness harness.cpp harness_layer.cpp harness_refusals.cpp)
        target_sources(videossm_plugin_harness PRIVATE plugin/library.cpp)
        target_link_libraries(videossm_plugin_harness PRIVATE videossm_plugin_tensorrt)
        videossm_add_plugins(videossm_plugins_cpu videossm_scans_cpu)
        set_target_properties(videossm_plugins_cpu PROPERTIES EXCLUDE_FROM_ALL TRUE)
        add_dependencies(plugin_tests videossm_plugins_cpu)
    endif()
endif()
