set(prefix "${BUILD}/install_test/a prefix")
set(example "${BUILD}/install_test/build")
file(REMOVE_RECURSE "${BUILD}/install_test")

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    list(JOIN ARGV " " command)
    message("${output}")
    message(FATAL_ERROR "${command}: exit ${status}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
run(${CMAKE_COMMAND} -S ${SOURCE}/examples -B ${example} -G ${GENERATOR} -DCMAKE_BUILD_TYPE=${CONFIG}
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
run(${CMAKE_COMMAND} --build ${example})

run(${example}/generate ${SOURCE}/models/storyteller "Once upon a time")
string(LENGTH "${output}" length)
if(length LESS 100)
  message(FATAL_ERROR "the example must print a story, got: ${output}")
endif()

# The installed command finds the model installed beside it.
run(${prefix}/bin/elapid generate --greedy --max-new-tokens 5 "Once upon a time")
if(NOT output MATCHES "a prefix/share/elapid/models/storyteller")
  message(FATAL_ERROR "the installed command must name the installed model, got: ${output}")
endif()
