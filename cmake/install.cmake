# What `cmake --install` puts where: headers, library, command line tool and the package for find_package.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/flashmla)

install(DIRECTORY include/flashmla DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS flashmla EXPORT flashmlaTargets)
install(EXPORT flashmlaTargets NAMESPACE flashmla:: DESTINATION ${package_dir})
if(TARGET flashmla_cli)
  install(TARGETS flashmla_cli)
endif()

configure_package_config_file(
  cmake/flashmlaConfig.cmake.in ${PROJECT_BINARY_DIR}/cmake/flashmlaConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/cmake/flashmlaConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(
  FILES ${PROJECT_BINARY_DIR}/cmake/flashmlaConfig.cmake ${PROJECT_BINARY_DIR}/cmake/flashmlaConfigVersion.cmake
  DESTINATION ${package_dir})
