# Imported targets for the torch that ${Python_EXECUTABLE} imports: torch::core (no Python), torch::python, torch::openmp.
# find_package(Torch) is avoided on purpose: with a CUDA-built torch it demands the whole CUDA toolkit.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "
import glob, os, torch, torch.utils.cpp_extension as e
lib = e.library_paths()[0]
bundled = glob.glob(os.path.join(lib, 'libgomp*.so*')) + glob.glob(os.path.join(os.path.dirname(torch.__file__), '..', 'torch.libs', 'libgomp*.so*'))
print(torch.__version__)
print(';'.join(p for p in e.include_paths() if os.path.isdir(p)))
print(lib)
print(int(torch.compiled_with_cxx11_abi()))
print(os.path.realpath(bundled[0]) if bundled else 'none')
print(int(torch.version.cuda is not None))"
  OUTPUT_VARIABLE _torch OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE _torch_error RESULT_VARIABLE _torch_failed)
if(_torch_failed)
  message(FATAL_ERROR
    "placket is built against the torch you use, and ${Python_EXECUTABLE} cannot import torch. "
    "Install torch first, then: pip install --no-build-isolation .\n${_torch_error}")
endif()
string(REPLACE "\n" "|" _torch "${_torch}")
string(REPLACE ";" "\\;" _torch "${_torch}")
string(REPLACE "|" ";" _torch "${_torch}")
list(GET _torch 0 TORCH_VERSION)
list(GET _torch 1 TORCH_INCLUDE_DIRS)
list(GET _torch 2 TORCH_LIBRARY_DIR)
list(GET _torch 3 TORCH_CXX11_ABI)
list(GET _torch 4 TORCH_OPENMP_LIBRARY)
list(GET _torch 5 TORCH_HAS_CUDA)
string(REPLACE "\\;" ";" TORCH_INCLUDE_DIRS "${TORCH_INCLUDE_DIRS}")
message(STATUS "torch ${TORCH_VERSION} in ${TORCH_LIBRARY_DIR}")

add_library(torch::core INTERFACE IMPORTED)
# SYSTEM, or every warning flag fires inside torch's headers.
target_include_directories(torch::core SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
target_compile_definitions(torch::core INTERFACE _GLIBCXX_USE_CXX11_ABI=${TORCH_CXX11_ABI})
target_link_directories(torch::core INTERFACE ${TORCH_LIBRARY_DIR})
target_link_libraries(torch::core INTERFACE torch torch_cpu c10)

add_library(torch::python INTERFACE IMPORTED)
target_link_libraries(torch::python INTERFACE torch::core torch_python)

# One OpenMP runtime in the process: the one torch brought. Only the compiler flag is taken from the system.
find_package(OpenMP REQUIRED COMPONENTS CXX)
add_library(torch::openmp INTERFACE IMPORTED)
target_compile_options(torch::openmp INTERFACE $<$<COMPILE_LANGUAGE:CXX>:${OpenMP_CXX_FLAGS}>)
if(TORCH_OPENMP_LIBRARY STREQUAL "none")
  target_link_libraries(torch::openmp INTERFACE OpenMP::OpenMP_CXX)
else()
  target_link_libraries(torch::openmp INTERFACE ${TORCH_OPENMP_LIBRARY})
endif()
