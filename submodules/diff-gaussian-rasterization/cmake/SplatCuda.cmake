# The CUDA half of the package, where there is one and nvcc can build it.
#
# The sources are compiled while CMake configures, in a project of their own: only then can a
# failure (no compiler, one too old for the GPU list, an error in a kernel) leave a CPU package
# and one line that says so, instead of no package.

# Sets SPLAT_CUDA_BUILD on `target` to what became of it (no paths: it travels in the wheel);
# SPLAT_WITH_CUDA=1 when it is in.
function(splat_add_cuda target mode sources)
  if(NOT mode MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "SPLAT_CUDA=${mode}: use AUTO, ON or OFF")
  endif()
  set(architectures 80-real 86-real 89-real 90) # 90: with PTX, for whatever comes later
  if(CMAKE_CUDA_ARCHITECTURES)
    set(architectures ${CMAKE_CUDA_ARCHITECTURES})
  endif()

  set(problem "")
  if(mode STREQUAL "OFF")
    set(problem "SPLAT_CUDA=OFF")
  elseif(NOT sources)
    set(problem "no CUDA sources")
  else()
    splat_find_nvcc(nvcc problem)
    if(NOT problem)
      splat_build_cuda("${nvcc}" "${architectures}" "${sources}" library problem)
    endif()
  endif()

  if(problem)
    if(mode STREQUAL "ON")
      message(FATAL_ERROR "SPLAT_CUDA=ON: ${problem}")
    endif()
    message(STATUS "diff_gaussian_rasterization: CPU only (${problem})")
    target_compile_definitions(${target} PRIVATE "SPLAT_CUDA_BUILD=\"no: ${problem}\"")
    return()
  endif()
  list(JOIN architectures " " listed)
  message(STATUS "diff_gaussian_rasterization: CPU and CUDA (${listed})")
  target_link_libraries(${target} PRIVATE "${library}" CUDA::cudart_static)
  target_compile_definitions(${target} PRIVATE SPLAT_WITH_CUDA=1 "SPLAT_CUDA_BUILD=\"${listed}\"")
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

function(splat_build_cuda nvcc architectures sources library problem)
  set(build "${CMAKE_CURRENT_BINARY_DIR}/cuda")
  set(log "${build}.log")
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -S "${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda" -B "${build}"
            -G "${CMAKE_GENERATOR}" "-DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM}"
            "-DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}" "-DCMAKE_CUDA_COMPILER=${nvcc}"
            "-DCMAKE_CUDA_ARCHITECTURES=${architectures}" "-DSPLAT_CUDA_SOURCES=${sources}"
            "-DSPLAT_INCLUDE=${CMAKE_CURRENT_SOURCE_DIR}/csrc"
    RESULT_VARIABLE failed OUTPUT_FILE "${log}" ERROR_FILE "${log}")
  if(NOT failed)
    execute_process(COMMAND "${CMAKE_COMMAND}" --build "${build}" --parallel
                    RESULT_VARIABLE failed OUTPUT_FILE "${log}" ERROR_FILE "${log}")
  endif()
  # a change of the sources configures, and so compiles, again
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${sources})
  if(failed)
    message(STATUS "nvcc: see ${log}")
    set(${problem} "the CUDA sources did not compile" PARENT_SCOPE)
  endif()
  set(${library} "${build}/libsplat_cuda.a" PARENT_SCOPE)
endfunction()
