"""MDM (Tevet et al. 2023), which generates one person, and ComMDM (Shafir et al. 2024), which joins two of it."""
