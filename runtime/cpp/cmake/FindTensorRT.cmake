# Headers of TensorRT 11 or later: TensorRT_ROOT, with include/, or the system's; and the header of CUDA's runtime, which
# they need. Gives TensorRT::Headers. Neither library is linked: both are loaded when a plan asks for them.
find_path(TensorRT_INCLUDE_DIR NvInferRuntime.h HINTS ${TensorRT_ROOT} ENV TensorRT_ROOT PATH_SUFFIXES include)
find_package(CUDAToolkit QUIET)
find_path(TensorRT_CUDA_INCLUDE_DIR cuda_runtime_api.h HINTS ${CUDAToolkit_INCLUDE_DIRS} ENV CUDA_HOME
          PATHS /usr/local/cuda PATH_SUFFIXES include)
if(TensorRT_INCLUDE_DIR)
    file(STRINGS ${TensorRT_INCLUDE_DIR}/NvInferVersion.h line REGEX "^#define (TRT|NV_TENSORRT)_MAJOR(_ENTERPRISE)? [0-9]+")
    if(line MATCHES " ([0-9]+)")
        set(TensorRT_VERSION ${CMAKE_MATCH_1})
    endif()
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT REQUIRED_VARS TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR
                                  VERSION_VAR TensorRT_VERSION)
if(TensorRT_FOUND AND NOT TARGET TensorRT::Headers)
    add_library(TensorRT::Headers INTERFACE IMPORTED)
    set_target_properties(TensorRT::Headers PROPERTIES
        INTERFACE_INCLUDE_DIRECTORIES "${TensorRT_INCLUDE_DIR};${TensorRT_CUDA_INCLUDE_DIR}")
endif()
mark_as_advanced(TensorRT_INCLUDE_DIR TensorRT_CUDA_INCLUDE_DIR)
