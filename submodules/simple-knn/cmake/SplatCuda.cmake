# The CUDA half of a package, where there is one and nvcc can build it.
#
# The sources are compiled while CMake configures, in a project of their own: only then can a
# failure (no compiler, one too old for the GPU list, an error in a kernel) leave a CPU package
# and one line that says so, instead of no package.

# Sets SPLAT_CUDA_BUILD on `target` to what became of it (no paths: it travels in the wheel);
# SPLAT_WITH_CUDA=1 when it is in, and the variable of that name where it is called. One line says
# so to people, with what nvcc said first; the file cuda.txt in the build folder keeps it.
function(splat_add_cuda target mode sources)
  if(NOT mode MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "SPLAT_CUDA=${mode}: use AUTO, ON or OFF")
  endif()
  set(architectures 80-real 86-real 89-real 90) # 90: with PTX, for whatever comes later
  if(CMAKE_CUDA_ARCHITECTURES)
    set(architectures ${CMAKE_CUDA_ARCHITECTURES})
  endif()

  set(problem "")
  set(details "")
  if(mode STREQUAL "OFF")
    set(problem "SPLAT_CUDA=OFF")
  elseif(NOT sources)
    set(problem "no CUDA sources")
  else()
    splat_find_nvcc(nvcc problem)
    if(NOT problem)
      splat_build_cuda("${nvcc}" "${architectures}" "${sources}" library problem details)
    endif()
  endif()

  set(SPLAT_WITH_CUDA OFF PARENT_SCOPE)
  if(problem)
    if(mode STREQUAL "ON")
      message(FATAL_ERROR "SPLAT_CUDA=ON: ${problem}${details}")
    endif()
    splat_tell("CPU only (${problem})${details}")
    target_compile_definitions(${target} PRIVATE "SPLAT_CUDA_BUILD=\"no: ${problem}\"")
    return()
  endif()
  list(JOIN architectures " " listed)
  splat_tell("CPU and CUDA (${listed})")
  target_link_libraries(${target} PRIVATE "${library}" CUDA::cudart_static)
  # The runtime that is linked in stays its own: PyTorch brings another one of the same names.
  target_link_options(${target} PRIVATE -Wl,--exclude-libs,ALL)
  target_compile_definitions(${target} PRIVATE SPLAT_WITH_CUDA=1 "SPLAT_CUDA_BUILD=\"${listed}\"")
  set(SPLAT_WITH_CUDA ON PARENT_SCOPE)
endfunction()

function(splat_tell line)
  message(STATUS "${PROJECT_NAME}: ${line}")
  file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/cuda.txt" "${PROJECT_NAME}: ${line}\n")
endfunction()

function(splat_find_nvcc result problem)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # the CUDA runtime that belongs to this compiler
    get_filename_component(folder "${CMAKE_CUDA_COMPILER}" REALPATH)
    get_filename_component(folder "${folder}" DIRECTORY)
    get_filename_component(CUDAToolkit_ROOT "${folder}" DIRECTORY)
    find_package(CUDAToolkit QUIET)
  endif()
  if(NOT CMAKE_CUDA_COMPILER)
    set(${problem} "no nvcc that works" PARENT_SCOPE)
  elseif(NOT TARGET CUDA::cudart_static)
    set(${problem} "no static CUDA runtime" PARENT_SCOPE)
  endif()
  set(${result} "${CMAKE_CUDA_COMPILER}" PARENT_SCOPE)
endfunction()

function(splat_build_cuda nvcc architectures sources library problem details)
  set(build "${CMAKE_CURRENT_BINARY_DIR}/cuda")
  set(log "${build}.log")
  set(jobs $ENV{CMAKE_BUILD_PARALLEL_LEVEL})
  if(NOT jobs)
    cmake_host_system_information(RESULT jobs QUERY NUMBER_OF_LOGICAL_CORES)
  endif()
  file(WRITE "${log}" "")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda" -B "${build}"
            -G "${CMAKE_GENERATOR}" "-DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}"
            "-DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}" "-DCMAKE_CUDA_COMPILER=${nvcc}"
            "-DCMAKE_CUDA_ARCHITECTURES=${architectures}" "-DSPLAT_CUDA_SOURCES=${sources}"
            "-DSPLAT_INCLUDE=${CMAKE_CURRENT_SOURCE_DIR}/csrc" "-DSPLAT_WERROR=${SPLAT_WERROR}"
    RESULT_VARIABLE failed OUTPUT_FILE "${log}" ERROR_FILE "${log}")
  if(NOT failed)
    execute_process(COMMAND "${CMAKE_COMMAND}" --build "${build}" --parallel ${jobs}
                    RESULT_VARIABLE failed OUTPUT_FILE "${log}" ERROR_FILE "${log}")
  endif()
  # a change of the sources or of what they include configures, and so compiles, again
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/csrc/*.h"
       "${CMAKE_CURRENT_SOURCE_DIR}/csrc/*.cuh")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${sources} ${headers})
  if(failed)
    file(STRINGS "${log}" errors REGEX "(^|[ )])(error|fatal) *[:#]|CMake Error" LIMIT_COUNT 1)
    set(${problem} "the CUDA sources did not compile" PARENT_SCOPE)
    set(${details} ": ${errors}; see ${log}" PARENT_SCOPE)
  endif()
  set(${library} "${build}/libsplat_cuda.a" PARENT_SCOPE)
endfunction()
