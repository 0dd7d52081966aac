# The CUDA half: its compiler, the architectures that kernels are compiled for, and their flags.
#
# Machine code for Ampere (8.0 and what follows it in 8.x) and for Hopper with its own instructions (9.0a), and PTX, which
# drivers compile for everything later. -DCMAKE_CUDA_ARCHITECTURES=90a-real builds for one, faster.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real 80-virtual)
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
# CMake before 3.26 does not know that nvcc has C++20, which C++ targets ask their CUDA sources for as well.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_FLAGS_RELEASE "-O3 -DNDEBUG")

# Compiles *.cu files, as <target>_cuda, into <target>.
function(elapid_add_cuda_kernels target)
  set(objects ${target}_cuda)
  add_library(${objects} OBJECT ${ARGN})
  target_include_directories(${objects} PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_compile_definitions(${objects} PRIVATE ELAPID_WITH_CUDA=1)
  target_compile_features(${objects} PRIVATE cxx_std_20)
  # Constants and shapes that both sides compute with are constexpr functions of ordinary headers.
  target_compile_options(${objects} PRIVATE --expt-relaxed-constexpr -Wno-deprecated-gpu-targets -Xcompiler=-Wall,-Wextra
                                            -Xcompiler=-Wno-missing-field-initializers)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
endfunction()
