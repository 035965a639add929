# Decides whether the CUDA kernels are built, and sets FLASHMLA_BUILD_CUDA to the decision.
include(CheckLanguage)

set(flashmla_resources ${CMAKE_CURRENT_LIST_DIR}/cuda_resources.py)

set(FLASHMLA_CUDA AUTO CACHE STRING "Build the CUDA kernels: ON, OFF, or AUTO, where nvcc is found")
set_property(CACHE FLASHMLA_CUDA PROPERTY STRINGS AUTO ON OFF)

# Machine code for the first GPU of each family, which the later ones of the family run, too: 80 serves 86 and
# 89, 90 stands alone, 100 serves 103, 120 serves 121. `120` adds PTX, for GPUs that are newer than all of them.
set(FLASHMLA_CUDA_ARCHITECTURES 80-real 90-real 100-real 120
    CACHE STRING "What the CUDA kernels are compiled for, as in CMAKE_CUDA_ARCHITECTURES")

# Sets `reason` to why CUDA cannot be built here; empty if it can.
function(flashmla_why_no_cuda reason)
  set(${reason} "" PARENT_SCOPE)
  if(CMAKE_VERSION VERSION_LESS 3.31)
    set(${reason} "CMake 3.31 is needed to compile C++20 with nvcc, this is ${CMAKE_VERSION}" PARENT_SCOPE)
    return()
  endif()
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(${reason} "no nvcc that works with ${CMAKE_CXX_COMPILER}" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE version ERROR_QUIET)
  if(NOT version MATCHES "release ([0-9.]+)" OR CMAKE_MATCH_1 VERSION_LESS 12.8)
    set(${reason} "nvcc 12.8 is needed, ${CMAKE_CUDA_COMPILER} is ${CMAKE_MATCH_1}" PARENT_SCOPE)
    return()
  endif()
  find_package(Python 3.10 COMPONENTS Interpreter QUIET)
  if(NOT Python_Interpreter_FOUND)
    set(${reason} "Python 3.10 is needed to read what nvcc reports" PARENT_SCOPE)
  endif()
endfunction()

set(FLASHMLA_BUILD_CUDA OFF)
if(FLASHMLA_CUDA STREQUAL "AUTO" OR FLASHMLA_CUDA)
  set(CMAKE_CUDA_ARCHITECTURES ${FLASHMLA_CUDA_ARCHITECTURES})
  flashmla_why_no_cuda(why_not)
  if(why_not STREQUAL "")
    set(FLASHMLA_BUILD_CUDA ON)
  elseif(FLASHMLA_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA kernels: not built: ${why_not}")
  else()
    message(FATAL_ERROR "FLASHMLA_CUDA=${FLASHMLA_CUDA}: ${why_not}")
  endif()
endif()
if(FLASHMLA_BUILD_CUDA)
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter)
  message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION}, for ${FLASHMLA_CUDA_ARCHITECTURES}")
endif()

# flashmla_kernels(TARGET NAME ARCHITECTURES FILE...) compiles kernels for these architectures and puts them into
# TARGET, as the object library NAME. cuda_resources.py fails the build if one of them spills registers.
function(flashmla_kernels target name architectures)
  add_library(${name} OBJECT ${ARGN})
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR})
  target_compile_options(${name} PRIVATE -Xptxas=-v)
  target_link_libraries(${name} PRIVATE flashmla_warnings)
  set_target_properties(
    ${name}
    PROPERTIES CUDA_ARCHITECTURES "${architectures}"
               CUDA_COMPILER_LAUNCHER "${Python_EXECUTABLE};${flashmla_resources};compile")
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${name}>)
  set_property(GLOBAL APPEND PROPERTY FLASHMLA_KERNELS ${name})
endfunction()

# Adds the target that writes build/cuda-resources.txt and .json: what each kernel uses on each architecture.
function(flashmla_report_resources)
  get_property(targets GLOBAL PROPERTY FLASHMLA_KERNELS)
  set(objects)
  foreach(target ${targets})
    list(APPEND objects $<TARGET_OBJECTS:${target}>)
  endforeach()
  set(report ${PROJECT_BINARY_DIR}/cuda-resources)
  add_custom_command(
    OUTPUT ${report}.txt ${report}.json
    COMMAND ${Python_EXECUTABLE} ${flashmla_resources} report ${report} ${objects}
    DEPENDS ${flashmla_resources} ${objects}
    COMMAND_EXPAND_LISTS VERBATIM
    COMMENT "Reporting what the CUDA kernels use")
  add_custom_target(flashmla_cuda_resources ALL DEPENDS ${report}.txt)
endfunction()
