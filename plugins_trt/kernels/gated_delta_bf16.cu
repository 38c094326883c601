#include "kernels/gated_delta_launch.cuh"

using videossm_type = videossm::BFloat16;

template size_t videossm::gated_delta_workspace<videossm_type>(const videossm_gated_delta_params&);
template videossm_status videossm::gated_delta_scan_on<videossm_type>(const videossm_gated_delta_params&, cudaStream_t);
