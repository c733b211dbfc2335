# mf_component(NAME SOURCES... [LIBS ...]): one folder, one static library; it sees the include roots
# below, and tests/checks/layers.py sees to it that it uses only those its layer may.
function(mf_component name)
  cmake_parse_arguments(ARG "" "" "LIBS" ${ARGN})
  add_library(${name} STATIC ${ARG_UNPARSED_ARGUMENTS})
  target_include_directories(${name} PUBLIC
    ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/engine
    ${PROJECT_SOURCE_DIR}/engine/include ${PROJECT_SOURCE_DIR}/hv-adapters/include)
  target_link_libraries(${name} PUBLIC mf_flags ${ARG_LIBS})
  set_property(GLOBAL APPEND PROPERTY MF_COMPONENTS ${name})
endfunction()

# mf_test(NAME SOURCES... [LIBS ...] [ARGS ...] [LABEL l] [TIMEOUT s] [SERIAL]): a cmocka program as a
# CTest.  Exit 77 is a skip that has printed its reason.  SERIAL: nothing else may run beside it.
function(mf_test name)
  cmake_parse_arguments(ARG "SERIAL" "LABEL;TIMEOUT" "LIBS;ARGS" ${ARGN})
  add_executable(${name} ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE ${ARG_LIBS} PkgConfig::CMOCKA mf_flags)
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  mf_test_properties(${name} "${ARG_LABEL}" "${ARG_TIMEOUT}")
  if(ARG_SERIAL)
    set_property(TEST ${name} PROPERTY RUN_SERIAL ON)
  endif()
endfunction()

# mf_memcheck(TEST PROGRAM [ARGS...]): a test's program once more, under valgrind.  For what is pure: no threads that race
# against deadlines, no calls that valgrind does not know.
function(mf_memcheck name program)
  if(MF_SANITIZE) # one or the other
    return()
  endif()
  add_test(NAME memcheck_${name}
    COMMAND ${PROJECT_SOURCE_DIR}/tests/support/memcheck.sh $<TARGET_FILE:${program}> ${ARGN})
  mf_test_properties(memcheck_${name} memcheck 240)
endfunction()

# What every test shares, programs and scripts alike; for those that add_test() made.
function(mf_test_properties name label timeout)
  if(NOT timeout)
    set(timeout 60)
  endif()
  if(MF_SANITIZE) # slower by a factor, never by a hang
    math(EXPR timeout "${timeout} * 4")
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${label}" TIMEOUT ${timeout} SKIP_RETURN_CODE 77)
endfunction()
