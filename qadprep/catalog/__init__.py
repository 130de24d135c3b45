"""What is on disk: one reader per dataset, the clips and groups they find, official splits. Opens no video."""
