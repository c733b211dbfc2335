# mf_component(NAME SOURCES... [LIBS ...]): one folder, one static library; it sees the include roots
# below, and tests/checks/layers.py sees to it that it uses only those its layer may.
function(mf_component name)
  cmake_parse_arguments(ARG "" "" "LIBS" ${ARGN})
  add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  target_include_directories(${name} PUBLIC
    ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/engine
    ${PROJECT_SOURCE_DIR}/engine/include ${PROJECT_SOURCE_DIR}/hv-adapters/include)
  target_link_libraries(${name} PUBLIC mf_flags ${ARG_LIBS})
endfunction()

# mf_test(NAME SOURCES... [LIBS ...] [ARGS ...] [LABEL l] [TIMEOUT s]): a cmocka program as a CTest.  Exit 77 is a
# skip that has printed its reason.
function(mf_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "LIBS;ARGS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 60)
  endif()
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} PkgConfig::CMOCKA mf_flags)
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABEL}" TIMEOUT ${ARG_TIMEOUT}
    SKIP_RETURN_CODE 77)
endfunction()
