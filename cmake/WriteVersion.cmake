# Run by the build (cmake -P), in whichever folder: writes TARGET from SOURCE where it would become another text, with
# BLOCKSERVE_COMMIT or, where that is empty, the commit of the source tree.
if(NOT BLOCKSERVE_COMMIT)
  set(BLOCKSERVE_COMMIT "unknown")
  get_filename_component(folder ${SOURCE} DIRECTORY)
  find_program(git git)
  if(git)
    execute_process(COMMAND ${git} rev-parse --short=12 HEAD
                    WORKING_DIRECTORY ${folder} OUTPUT_VARIABLE commit
                    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed)
      set(BLOCKSERVE_COMMIT ${commit})
    endif()
  endif()
endif()
configure_file(${SOURCE} ${TARGET} @ONLY)
