# Language, warnings, sanitizers and output folders common to every target.
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

# No contraction anywhere: the kernels write their fused multiply-adds out, so that every machine and
# every compiler adds in the same order (docs/architecture.md, Same bits).
add_compile_options(
  "$<$<COMPILE_LANGUAGE:CXX>:-ffp-contract=off;-Wall;-Wextra;-Wno-unused-parameter;-fno-math-errno>")
if(CMAKE_BUILD_TYPE STREQUAL "Release")
  add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:-O2>")
endif()

if(BLOCKSERVE_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=address,undefined)
elseif(BLOCKSERVE_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread -g1)
  add_link_options(-fsanitize=thread)
  # Debian's Abseil is not instrumented: absl::Mutex would show false races (see common/mutex.h).
  add_compile_definitions(BLOCKSERVE_STD_MUTEX)
elseif(NOT BLOCKSERVE_SANITIZE STREQUAL "")
  message(FATAL_ERROR "BLOCKSERVE_SANITIZE is '${BLOCKSERVE_SANITIZE}': use address or thread")
endif()

if(BLOCKSERVE_FUZZERS)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "BLOCKSERVE_FUZZERS needs clang, whose libFuzzer it uses")
  endif()
  # The libraries too, else libFuzzer sees nothing of the code that it is to explore.
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
