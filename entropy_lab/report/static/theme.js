// Light, dark, or as the system says; remembered where the browser allows it.

function setTheme(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  document.dispatchEvent(new Event("themechange"));
}

function watchTheme() {
  const menu = document.getElementById("theme");
  let kept = null;
  try {
    kept = localStorage.getItem("entropy-lab-theme");
  } catch { /* a page from disk may have no storage */ }
  if (kept) {
    menu.value = kept;
    setTheme(menu.value);
  }
  menu.addEventListener("change", () => {
    setTheme(menu.value);
    try {
      localStorage.setItem("entropy-lab-theme", menu.value);
    } catch { /* not remembered */ }
  });
}

watchTheme();
