# Build options, what they find, and the one target that carries all compile flags.
set(MF_SANITIZE "" CACHE STRING "sanitizers, comma-separated: address,undefined or thread")
option(MF_WERROR "warnings are errors" OFF)
option(MF_TESTS "build the tests" ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "" FORCE)
endif()
# Asserts stay on: they guard contracts, and a broken contract must not move a guest.
foreach(config RELWITHDEBINFO RELEASE MINSIZEREL)
  string(REPLACE "-DNDEBUG" "" CMAKE_C_FLAGS_${config} "${CMAKE_C_FLAGS_${config}}")
endforeach()

set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_package(PkgConfig REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
find_program(PROTOC_C protoc-c REQUIRED)

set(MF_WITH_FABRIC AUTO CACHE STRING "TCP over libfabric: AUTO, ON or OFF")
set_property(CACHE MF_WITH_FABRIC PROPERTY STRINGS AUTO ON OFF)
if(NOT MF_WITH_FABRIC STREQUAL OFF)
  pkg_check_modules(LIBFABRIC IMPORTED_TARGET libfabric>=1.17)
  if(MF_WITH_FABRIC STREQUAL ON AND NOT LIBFABRIC_FOUND)
    message(FATAL_ERROR "MF_WITH_FABRIC=ON, but libfabric 1.17 or newer was not found")
  endif()
endif()
message(STATUS "transport fabric: ${LIBFABRIC_FOUND} (libfabric ${LIBFABRIC_VERSION})")

set(MF_WITH_VERBS AUTO CACHE STRING "RDMA over libibverbs and librdmacm: AUTO, ON or OFF")
set_property(CACHE MF_WITH_VERBS PROPERTY STRINGS AUTO ON OFF)
if(NOT MF_WITH_VERBS STREQUAL OFF)
  pkg_check_modules(VERBS IMPORTED_TARGET libibverbs librdmacm>=1.3)
  if(MF_WITH_VERBS STREQUAL ON AND NOT VERBS_FOUND)
    message(FATAL_ERROR "MF_WITH_VERBS=ON, but libibverbs and librdmacm were not found")
  endif()
endif()
message(STATUS "transport verbs: ${VERBS_FOUND} (librdmacm ${VERBS_librdmacm_VERSION})")

add_library(mf_flags INTERFACE)
target_compile_definitions(mf_flags INTERFACE _GNU_SOURCE MF_VERSION="${PROJECT_VERSION}")
target_compile_options(mf_flags INTERFACE
  -Wall -Wextra -Wshadow -Wmissing-prototypes -Wstrict-prototypes -Wvla -Wformat=2
  -Wwrite-strings -Wundef -fno-common)
target_link_libraries(mf_flags INTERFACE Threads::Threads)
if(MF_WERROR)
  target_compile_options(mf_flags INTERFACE -Werror)
endif()
if(MF_SANITIZE)
  target_compile_options(mf_flags INTERFACE -fsanitize=${MF_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(mf_flags INTERFACE -fsanitize=${MF_SANITIZE})
  if(MF_SANITIZE MATCHES thread AND CMAKE_C_COMPILER_ID STREQUAL "GNU")
    # Fences between atomics are not seen by it; it does not report atomics either.
    target_compile_options(mf_flags INTERFACE -Wno-tsan)
  endif()
else()
  target_compile_options(mf_flags INTERFACE -fstack-protector-strong
    "$<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE;-D_FORTIFY_SOURCE=2>")
  target_link_options(mf_flags INTERFACE -Wl,-z,relro,-z,now)
endif()
