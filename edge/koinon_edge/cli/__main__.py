from koinon_edge.cli import main

main()
