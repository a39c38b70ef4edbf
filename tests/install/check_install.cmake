# cmake -DBUILD=… -DSOURCE=… -DWORK=… -P check_install.cmake: installs the build, looks for what has to
# be there, and builds the example of the client library against it from outside.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix)
foreach(file IN ITEMS
    bin/blockserve bin/blockserve-gateway bin/blockserve-block bin/blockserve-token
    bin/blockserve-bench
    share/blockserve/proto/blockserve/v1/generation.proto
    share/blockserve/proto/blockserve/v1/block_decoder.proto
    share/blockserve/proto/blockserve/v1/token_decoder.proto
    share/blockserve/proto/blockserve/v1/tier.proto)
  if(NOT EXISTS ${WORK}/prefix/${file})
    message(FATAL_ERROR "${file} is not installed")
  endif()
endforeach()
run(${WORK}/prefix/bin/blockserve --version)

run(${CMAKE_COMMAND} -S ${SOURCE}/tests/install -B ${WORK}/user -G Ninja
    -DCMAKE_PREFIX_PATH=${WORK}/prefix -DEXAMPLE=${SOURCE}/client/examples/generate.cc)
run(${CMAKE_COMMAND} --build ${WORK}/user)
# It runs; whom it would call is tested elsewhere.
execute_process(COMMAND ${WORK}/user/generate RESULT_VARIABLE status ERROR_VARIABLE said)
if(NOT status EQUAL 2 OR NOT said MATCHES "usage")
  message(FATAL_ERROR "the installed example does not run: ${status} ${said}")
endif()
