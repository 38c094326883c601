#include "kernels/selective_scan_launch.cuh"

using videossm_type = videossm::BFloat16;

template videossm_status videossm::selective_scan_on<videossm_type>(const videossm_selective_scan_params&,
                                                                           cudaStream_t);
