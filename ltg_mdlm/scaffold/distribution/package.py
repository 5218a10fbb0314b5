"""The plugin `my_plugin` of ltg-mdlm."""
