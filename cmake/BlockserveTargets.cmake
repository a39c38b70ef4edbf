# blockserve_library(NAME SOURCES … DEPS …): a static library rooted at the repository, so that
# includes read "folder/file.h".
function(blockserve_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${name} STATIC ${ARG_SOURCES})
    target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
    target_link_libraries(${name} PUBLIC ${ARG_DEPS})
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
    target_link_libraries(${name} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

# Gives an executable the programs' malloc. Sanitizers bring their own.
function(blockserve_use_allocator target)
  if(NOT BLOCKSERVE_SANITIZE)
    target_link_libraries(${target} PRIVATE blockserve_allocator PkgConfig::JEMALLOC)
  endif()
endfunction()

# blockserve_program(NAME SOURCES … DEPS …): an installed program in build/bin.
function(blockserve_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  blockserve_use_allocator(${name})
  set_property(GLOBAL APPEND PROPERTY BLOCKSERVE_PROGRAMS ${name})
endfunction()

# Makes `tests_LABEL`, for each label given, build TARGET: a sanitizer run builds its own tests only.
function(blockserve_add_to_label_targets target)
  foreach(label IN LISTS ARGN)
    if(NOT TARGET tests_${label})
      add_custom_target(tests_${label})
    endif()
    add_dependencies(tests_${label} ${target})
  endforeach()
endfunction()

# blockserve_test(NAME SOURCES … DEPS … LABELS …): a GoogleTest program, one ctest entry, run in the
# repository's root so that tests name their data as "tests/golden/…".
# Labels: unit (no gRPC; also run under ASan), threads (also run under TSan), portable (also run for
# AArch64), integration (processes), emulated (CUDA engines on an emulated device), ptx (kernels as nvcc
# compiles them, interpreted), cuda (need a device, and say so where there is none).
function(blockserve_test name)
  if(NOT BLOCKSERVE_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT})
  if("cuda" IN_LIST ARG_LABELS)
    set_tests_properties(${name} PROPERTIES SKIP_REGULAR_EXPRESSION "no CUDA device: [^\n]*")
  endif()
  blockserve_add_to_label_targets(${name} ${ARG_LABELS})
endfunction()

# blockserve_fuzzer(NAME SOURCES … DEPS …): a libFuzzer program in build/fuzz; only with clang.
function(blockserve_fuzzer name)
  if(NOT BLOCKSERVE_FUZZERS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endfunction()
