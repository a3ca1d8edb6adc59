# The native tests: one program without Python, whose cases tests/test_native.py shows as pytest items.
find_package(GTest)
if(GTest_FOUND)
  add_executable(core_tests
    tests/cpp/host_memory_test.cpp
    tests/cpp/parallel_test.cpp
    tests/cpp/random_test.cpp
    tests/cpp/resample_test.cpp
  )
  target_link_libraries(core_tests PRIVATE core GTest::gtest_main)
  set_target_properties(core_tests PROPERTIES BUILD_RPATH ${TORCH_LIBRARY_DIR})
else()
  message(STATUS "GoogleTest was not found (Debian: apt-get install libgtest-dev): native tests are left out")
endif()
