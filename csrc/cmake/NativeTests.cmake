# The native tests: one program without Python, whose cases tests/test_native.py shows as pytest items.
find_package(GTest)
if(GTest_FOUND)
  add_executable(core_tests
    tests/cpp/bpe_tokenizer_test.cpp
    tests/cpp/dot_scores_test.cpp
    tests/cpp/host_memory_test.cpp
    tests/cpp/panel_scores_test.cpp
    tests/cpp/parallel_test.cpp
    tests/cpp/random_test.cpp
    tests/cpp/resample_test.cpp
  )
  # The CUDA kernels, run by the processor; a core with true ones has functions of the same names.
  if(NOT _cuda)
    set(emulation ${PROJECT_SOURCE_DIR}/tests/cpp/emulated_cuda)
    target_sources(core_tests PRIVATE ${emulation}/emulation.cpp)
    foreach(kernel IN LISTS cuda_kernels)
      set(emulated ${PROJECT_BINARY_DIR}/emulated_cuda/${kernel}.cpp)
      add_custom_command(OUTPUT ${emulated}
        COMMAND ${Python_EXECUTABLE} ${emulation}/launches.py
                ${PROJECT_SOURCE_DIR}/csrc/kernels/${kernel}.cu ${emulated}
        DEPENDS ${emulation}/launches.py csrc/kernels/${kernel}.cu)
      target_sources(core_tests PRIVATE ${emulated} tests/cpp/emulated_cuda/${kernel}_test.cpp)
      # nvcc's pragmas.
      set_source_files_properties(${emulated} PROPERTIES COMPILE_OPTIONS "-Wno-unknown-pragmas")
    endforeach()
    target_include_directories(core_tests PRIVATE ${emulation})
  endif()
  # SIMDe emulates the instructions that the machine may not have.
  find_path(SIMDE_INCLUDE_DIR simde/x86/avx512.h)
  if(SIMDE_INCLUDE_DIR AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(emulated_tests
      tests/cpp/dot_scores_emulated_test.cpp
      tests/cpp/panel_scores_emulated_test.cpp
      tests/cpp/resample_emulated_test.cpp)
    target_sources(core_tests PRIVATE ${emulated_tests})
    # GCC notes that the ABI of 64-byte vectors has changed in GCC 4.6.
    set_source_files_properties(${emulated_tests} PROPERTIES COMPILE_OPTIONS -Wno-psabi)
    target_include_directories(core_tests SYSTEM PRIVATE ${SIMDE_INCLUDE_DIR})
  else()
    message(STATUS "SIMDe was not found (Debian: apt-get install libsimde-dev): the tests of emulated AVX-512 are left out")
  endif()
  target_link_libraries(core_tests PRIVATE core GTest::gtest_main)
  set_target_properties(core_tests PROPERTIES BUILD_RPATH ${TORCH_LIBRARY_DIR})
else()
  message(STATUS "GoogleTest was not found (Debian: apt-get install libgtest-dev): native tests are left out")
endif()
