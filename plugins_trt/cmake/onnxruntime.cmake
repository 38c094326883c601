# videossm_onnxruntime: the scans as operators of ONNX Runtime, on the threads of its sessions. Built where its header is
# found: ONNXRUNTIME_ROOT, or the system's. Its library is not linked.
list(APPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_SOURCE_DIR}/../runtime/cpp/cmake)
find_package(ONNXRuntime MODULE QUIET)
if(NOT ONNXRuntime_FOUND)
    set(VIDEOSSM_ONNXRUNTIME_MISSING "videossm_onnxruntime: no header of ONNX Runtime, set ONNXRUNTIME_ROOT")
    list(APPEND VIDEOSSM_LEFT_OUT ${VIDEOSSM_ONNXRUNTIME_MISSING})
    add_custom_target(videossm_onnxruntime COMMAND ${CMAKE_COMMAND} -E echo "${VIDEOSSM_ONNXRUNTIME_MISSING}"
                      COMMAND ${CMAKE_COMMAND} -E false VERBATIM)
else()
    add_library(videossm_onnxruntime SHARED custom_ops/library.cpp custom_ops/kernels.cpp custom_ops/call.cpp
                custom_ops/threads.cpp)
    target_include_directories(videossm_onnxruntime SYSTEM PRIVATE ${ONNXRuntime_INCLUDE_DIR})
    target_link_libraries(videossm_onnxruntime PRIVATE videossm_scans_cpu_objects videossm_warnings)
    target_link_options(videossm_onnxruntime PRIVATE LINKER:-z,nodelete LINKER:-z,defs
                        LINKER:--version-script=${CMAKE_CURRENT_SOURCE_DIR}/custom_ops/exports.map)
    set_target_properties(videossm_onnxruntime PROPERTIES
                          LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/custom_ops/exports.map)
endif()
