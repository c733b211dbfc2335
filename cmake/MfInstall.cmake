# What leaves the build: the library with its headers and its pkg-config file, and the command.

# mf_closure(RET TARGETS...): the targets and the components that they link, each once.
function(mf_closure ret)
  get_property(components GLOBAL PROPERTY MF_COMPONENTS)
  set(todo ${ARGN})
  set(found)
  while(todo)
    list(POP_FRONT todo target)
    if(target IN_LIST components AND NOT target IN_LIST found)
      list(APPEND found ${target})
      get_target_property(links ${target} LINK_LIBRARIES)
      list(APPEND todo ${links})
    endif()
  endwhile()
  set(${ret} ${found} PARENT_SCOPE)
endfunction()

# mf_library(COMPONENTS...): libmemferry.so.0, of these components and all that they link, whole; only
# what libmemferry.map lists is visible.
function(mf_library)
  mf_closure(components ${ARGN})
  set(map ${PROJECT_SOURCE_DIR}/cmake/libmemferry.map)

  # Objects, not archives: nothing refers to what only users of the library call.  The archives are
  # linked for the libraries behind them; no member of one is missing any more.
  list(TRANSFORM components REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>" OUTPUT_VARIABLE objects)
  add_library(memferry_shared SHARED ${objects})
  set_target_properties(memferry_shared PROPERTIES
    LINKER_LANGUAGE C
    OUTPUT_NAME memferry
    VERSION ${PROJECT_VERSION}
    SOVERSION ${PROJECT_VERSION_MAJOR}
    LINK_DEPENDS ${map})
  target_link_libraries(memferry_shared PRIVATE mf_flags ${components})
  target_link_options(memferry_shared PRIVATE -Wl,--version-script=${map})
  if(NOT MF_SANITIZE) # a sanitizer's own symbols come from the program
    target_link_options(memferry_shared PRIVATE -Wl,-z,defs)
  endif()
  target_include_directories(memferry_shared INTERFACE
    ${PROJECT_SOURCE_DIR}/engine/include ${PROJECT_SOURCE_DIR}/hv-adapters/include)

  install(TARGETS memferry_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/engine/include/memferry
                    ${PROJECT_SOURCE_DIR}/hv-adapters/include/memferry
    DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")

  # The prefix is found from the file's own place, so that an installed tree may be moved.
  file(RELATIVE_PATH MF_PC_PREFIX
    ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
  configure_file(${PROJECT_SOURCE_DIR}/cmake/memferry.pc.in ${PROJECT_BINARY_DIR}/memferry.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/memferry.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endfunction()

# The command stands alone: it is linked with the components themselves.
function(mf_install_command target)
  set_target_properties(${target} PROPERTIES OUTPUT_NAME memferry)
  add_executable(memferry ALIAS ${target}) # for tests and demos: the command by its own name
  install(TARGETS ${target} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()
