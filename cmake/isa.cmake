# elapid_add_kernels(<target> <source>...)
#
# Compiles each *_cpu.cc once per instruction-set level and links all of them into <target>. The level's macro picks the
# vector type in cpu/simd.h and the backend tag (`Cpu`) that the kernels' run() overloads carry.

set(ELAPID_ISA_LEVELS baseline avx2 avx512)
set(ELAPID_ISA_FLAGS_baseline "")
set(ELAPID_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(ELAPID_ISA_FLAGS_avx512 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
# gcc 12 warns about _mm512_undefined_ps() inside its own headers (GCC bug 105593).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND ELAPID_ISA_FLAGS_avx512 -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

function(elapid_add_kernels target)
  foreach(level IN LISTS ELAPID_ISA_LEVELS)
    set(objects ${target}_${level})
    add_library(${objects} OBJECT ${ARGN})
    string(TOUPPER ${level} upper)
    target_compile_definitions(${objects} PRIVATE ELAPID_ISA_${upper}=1)
    target_compile_options(${objects} PRIVATE ${ELAPID_ISA_FLAGS_${level}})
    target_include_directories(${objects} PRIVATE ${PROJECT_SOURCE_DIR}/src)
    target_link_libraries(${objects} PRIVATE elapid_options)
    target_compile_options(${objects} PRIVATE $<$<CONFIG:Release>:-O3>)
    if(ELAPID_SANITIZE)
      target_compile_definitions(${objects} PRIVATE ELAPID_FEWER_TILES=1)
    endif()
    if(ELAPID_SANITIZE MATCHES "undefined")
      # Bounds of memory are what matters in kernels; checking every register of unrolled code takes minutes to compile.
      target_compile_options(${objects} PRIVATE -fno-sanitize=undefined)
    endif()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
  endforeach()
endfunction()
