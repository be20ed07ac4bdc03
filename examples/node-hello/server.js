// The smallest Node.js application: `npm start` runs it, $PORT says where to listen.
const http = require("node:http");

const version = process.env.BEANPOLE_VERSION || "unknown";
const server = http.createServer((request, response) => {
  response.setHeader("Content-Type", "text/plain");
  response.end(`Hello from Node.js ${process.version}, version ${version}\n`);
});

server.listen(process.env.PORT || 3000, () => console.log(`listening on ${server.address().port}`));

// By now the load balancer sends nothing new: finish what is open, then end.
process.on("SIGTERM", () => server.close(() => process.exit(0)));
