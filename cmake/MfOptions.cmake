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
find_package(OpenSSL 3 REQUIRED COMPONENTS SSL Crypto)
pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson)
pkg_check_modules(PROTOBUF_C REQUIRED IMPORTED_TARGET libprotobuf-c)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
find_program(PROTOC_C protoc-c REQUIRED)

# mf_optional(NAME PREFIX WHAT MODULES...): MF_WITH_NAME decides, and PREFIX_FOUND says, whether these are used.
macro(mf_optional name prefix what)
  set(MF_WITH_${name} AUTO CACHE STRING "${what}: AUTO, ON or OFF")
  set_property(CACHE MF_WITH_${name} PROPERTY STRINGS AUTO ON OFF)
  if(MF_WITH_${name} STREQUAL OFF)
    unset(${prefix}_FOUND CACHE) # from a time when it was not OFF
  else()
    pkg_check_modules(${prefix} IMPORTED_TARGET ${ARGN})
    if(MF_WITH_${name} STREQUAL ON AND NOT ${prefix}_FOUND)
      message(FATAL_ERROR "MF_WITH_${name}=ON, but this was not found: ${ARGN}")
    endif()
  endif()
  message(STATUS "${what}: ${${prefix}_FOUND}")
endmacro()

mf_optional(FABRIC LIBFABRIC "TCP over libfabric" libfabric>=1.17)
mf_optional(VERBS VERBS "RDMA over libibverbs and librdmacm" libibverbs librdmacm>=1.3)
mf_optional(HWLOC HWLOC "placement on NUMA hosts by hwloc" hwloc>=2.1)
mf_optional(SECCOMP LIBSECCOMP "system calls filtered by libseccomp" libseccomp>=2.5)

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
