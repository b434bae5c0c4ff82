"""Parts of `house_navigation`: how houses are laid out, how far things are in them, and what is seen of them."""
