(function () {
  "use strict";
  var find = document.getElementById("find"), show = document.getElementById("show");
  var cases = Array.prototype.slice.call(document.querySelectorAll(".case"));
  var texts = cases.map(function (item) { return item.textContent.toLowerCase(); });
  function filter() {
    var wanted = find.value.toLowerCase().split(/\s+/).filter(Boolean), count = 0;
    cases.forEach(function (item, index) {
      var fits = wanted.every(function (word) { return texts[index].indexOf(word) >= 0; }) &&
        (!show.value || item.dataset.way === show.value);
      item.hidden = !fits;
      count += fits ? 1 : 0;
    });
    document.getElementById("hits").textContent = count + " of " + cases.length;
  }
  document.getElementById("finder").hidden = false;
  find.addEventListener("input", filter);
  show.addEventListener("change", filter);
  filter();
})();
