# BLOCKSERVE_CUDA=auto|on|off: whether the CUDA engines are built. Sets BLOCKSERVE_HAVE_CUDA.
# BLOCKSERVE_EMULATE_PTX: emulated tests run what nvcc makes of the kernels (kernels/cuda/emulation).
#
# The programs need neither driver nor CUDA libraries to start: the runtime is linked statically and
# looks for the driver when a CUDA device is asked for, which is where its absence is reported.
set(BLOCKSERVE_HAVE_CUDA OFF)
if(NOT BLOCKSERVE_CUDA MATCHES "^(auto|on|off)$")
  message(FATAL_ERROR "BLOCKSERVE_CUDA is '${BLOCKSERVE_CUDA}': use auto, on or off")
endif()
if(BLOCKSERVE_EMULATE_PTX AND NOT BLOCKSERVE_CUDA STREQUAL "on")
  message(FATAL_ERROR "BLOCKSERVE_EMULATE_PTX takes nvcc: BLOCKSERVE_CUDA=on")
endif()
if(BLOCKSERVE_CUDA STREQUAL "off")
  message(NOTICE "CUDA engines: off (BLOCKSERVE_CUDA=off)")
  return()
endif()

# nvcc's usual place is not in PATH everywhere.
find_program(BLOCKSERVE_NVCC nvcc PATHS /usr/local/cuda/bin)
if(NOT BLOCKSERVE_NVCC)
  if(BLOCKSERVE_CUDA STREQUAL "on")
    message(FATAL_ERROR
      "BLOCKSERVE_CUDA=on, but there is no CUDA compiler: nvcc is neither in PATH nor in "
      "/usr/local/cuda/bin. Install the CUDA Toolkit, or give -DBLOCKSERVE_NVCC=…/nvcc")
  endif()
  message(NOTICE "CUDA engines: off (no CUDA compiler found; BLOCKSERVE_CUDA=auto)")
  return()
endif()

# Machine code for Ampere (8.x), Hopper (9.x) and Blackwell (12.x), and PTX that newer generations
# translate when a model is loaded.
if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES "80-real;90;120" CACHE STRING "CUDA architectures" FORCE)
endif()
if(NOT CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_COMPILER ${BLOCKSERVE_NVCC})
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
# CMake 3.25 does not know that nvcc has C++20 since CUDA 12.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# The first that knows Blackwell.
find_package(CUDAToolkit 12.8 REQUIRED)
set(BLOCKSERVE_HAVE_CUDA ON)
if(BLOCKSERVE_EMULATE_PTX)
  # The emulation has what kernels ask of the runtime; what runs on devices links it by name.
  set(CMAKE_CUDA_RUNTIME_LIBRARY None)
endif()
set(BLOCKSERVE_CUDA_ARITHMETICS " cuda-f32 cuda-bf16 cuda-bf16-own cuda-bf16-fast")
message(NOTICE "CUDA engines: on (nvcc ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES})")
