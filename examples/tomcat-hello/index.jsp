<%@ page contentType="text/plain; charset=UTF-8" %>Hello from <%= application.getServerInfo() %>, greeting <%= System.getProperty("GREETING") %>, version <%= System.getenv("BEANPOLE_VERSION") %>
